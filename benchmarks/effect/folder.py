"""A study on disk: what its runs have in common, and a line of JSON for each that is done.

study.json     the settings of the tasks and of the training; a folder of other settings is refused
runs.jsonl     a line a run, appended when it is done; what a kill cut short at the end is left out
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.effect.arms import WEIGHT_DECAY
from benchmarks.effect.run import BETAS, CLIP, DIVERGED, Record, Run
from benchmarks.effect.tasks import TASKS
from noble_fx.interleaved import machine

PACE = "pace.json"


class StudyError(ValueError):
    """A folder that does not hold what was asked for."""


def settings() -> dict[str, Any]:
    """What every run of a study depends on, besides its arm, rate, seed and steps."""
    return {
        "optimizer": {"name": "AdamW", "betas": list(BETAS), "weight_decay": WEIGHT_DECAY, "clip": CLIP},
        "schedule": "linear over min(100, steps/10), then a cosine to 10 %",
        "diverged": f"the loss is not finite, or above {DIVERGED:g} times that of the first step",
        "tasks": {name: task.settings() for name, task in TASKS.items()},
    }


class Study:
    """The runs of a folder; made where there is none. Raises `StudyError` for a folder of other settings."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "runs.jsonl"
        self.records: dict[Run, Record] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._check_settings(folder / "study.json")
        if self.path.exists():
            self._read()

    def add(self, record: Record) -> None:
        """Keep a run that is done."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.records[run_of(record)] = record

    def pace(self) -> dict[str, dict[str, float]]:
        """Seconds of a step over plain's, by task and arm, where `pace` has measured them."""
        path = self.folder / PACE
        found: dict[str, dict[str, float]] = (
            json.loads(path.read_text(encoding="utf-8"))["pace"] if path.exists() else {}
        )
        return found

    def keep_pace(self, found: dict[str, dict[str, float]]) -> None:
        """Keep what was measured, of other tasks what was."""
        values = {"machine": machine(), "pace": {**self.pace(), **found}}
        (self.folder / PACE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def _check_settings(self, path: Path) -> None:
        wanted = settings()
        if not path.exists():
            if self.path.exists():
                raise StudyError(f"{self.path} has runs, and nothing says of which settings; give another --folder")
            path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {**found, "tasks": {**wanted["tasks"], **found.get("tasks", {})}}  # a task may come later
        if known != wanted:
            other = sorted(name for name in wanted if known.get(name) != wanted[name])
            raise StudyError(f"{path} is of a study with another {', '.join(other)}; give another --folder")
        path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")

    def _read(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
            self.path.write_bytes(b"".join(lines))
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                self.records[run_of(record)] = record
            except (ValueError, KeyError) as error:
                raise StudyError(f"{self.path}, line {number} is no run: {error}") from None


def run_of(record: Record) -> Run:
    """The run that a record is of."""
    return Run(record["task"], record["arm"], record["steps"], record["lr"], record["seed"])


def final_loss(record: Record) -> float:
    """The held-out loss after the last step; infinite where the run diverged."""
    return float("inf") if record["diverged_at"] else record["validation"][-1]

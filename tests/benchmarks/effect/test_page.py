"""`docs/effect.md` shows what the committed runs say, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.effect import report
from benchmarks.effect.__main__ import FOLDER
from benchmarks.effect.folder import Study

PAGE = (Path(__file__).parents[3] / "docs" / "effect.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for path in FOLDER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return Study(folder)


def shown(lines) -> str:
    return "\n".join(lines)


def test_the_screenings_are_on_the_page(study):
    for task in ("bytes128", "bytes256"):
        assert shown(report.screen_table(study.records, task, 600)) in PAGE


def test_the_finals_are_on_the_page(study):
    tasks = [task for task, steps in {(run.task, run.steps) for run in study.records} if steps == 4000]
    assert {"bytes128", "digits", "masked128"} <= set(tasks)
    for task in tasks:
        if len(report.standings(study.records, task, 4000)) > 1:
            assert shown(report.final_table(study.records, task, 4000, study.pace().get(task, {}))) in PAGE


def test_runs_that_diverged_are_named(study):
    for task, steps in {(run.task, run.steps) for run in study.records}:
        for arm in report.diverged(study.records, task, steps):
            assert f"diverged: {arm}" in PAGE


def test_no_best_rate_is_at_an_edge(study):
    for task, steps in {(run.task, run.steps) for run in study.records}:
        for standing in report.standings(study.records, task, steps):
            rates = report.losses(study.records, task, standing.arm, steps)
            assert min(rates) < standing.rate < max(rates)

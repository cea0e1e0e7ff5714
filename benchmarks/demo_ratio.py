"""How many steps the branches save on the demo's task, with its spread.

    python benchmarks/demo_ratio.py --jobs 2             # two runs at a time, one thread each; about an hour
    python benchmarks/demo_ratio.py --jobs 2 --resume    # keeps the runs already in the results file

1. A learning-rate grid for each model, seed 0: its best learning rate, and the ratio of steps at each one.
2. Each model at its own best learning rate, several seeds: the ratio of steps, plain over NOBLE, to plain's final loss.
   Where NOBLE never reaches it, the ratio is below 1: plain's step at NOBLE's final loss over all steps.

A grid's best is by final validation loss at seed 0, so seed 0 counts slightly in favour of the winner, on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import noble_fx
from examples import train_bytes
from examples.byte_gpt import ByteGPT
from examples.demo_result import as_json, environment

KINDS = ("plain", "noble")
LRS = (1e-3, 2e-3, 4e-3, 8e-3)
RESULTS = Path(__file__).parent / "results" / "demo_ratio.json"
Record = dict[str, Any]
Job = tuple[str, float, int]  # "plain" or "noble", learning rate, seed


def measure(job: Job, steps: int, rank: int, threads: int) -> Record:
    """One training run of the demo's model with the demo's settings."""
    kind, lr, seed = job
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = ByteGPT()
    if kind == "noble":
        model = noble_fx.transform(model, rank=rank, act="cosnet", seed=seed)
    groups = noble_fx.param_groups(model, lr=lr, weight_decay=0.1)
    started = time.perf_counter()
    curve = train_bytes.train(model, groups, train_bytes.standard_library(), steps, seed=seed)
    return {
        "model": kind,
        "lr": lr,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final": curve.validation[-1],
        "minutes": (time.perf_counter() - started) / 60,
        "curve": asdict(curve),
    }


class Bench:
    """Runs what is not yet measured, and rewrites the results file after each run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.settings = {name: getattr(arguments, name) for name in ("steps", "rank")}
        self.runs: dict[Job, Record] = {}
        path: Path = arguments.out
        if arguments.resume and path.is_file():
            stored = json.loads(path.read_text())
            if {name: stored["settings"][name] for name in self.settings} == self.settings:
                self.runs = {(r["model"], r["lr"], r["seed"]): r for r in stored["runs"]}

    def run(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if job not in self.runs]
        threads = max(1, torch.get_num_threads() // self.arguments.jobs)
        # Spawned, not forked: a child with torch's threads half copied may hang.
        with ProcessPoolExecutor(self.arguments.jobs, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(measure, job, self.arguments.steps, self.arguments.rank, threads) for job in jobs]
            for job, future in zip(jobs, futures, strict=True):
                self.runs[job] = future.result()
                print(f"{job[0]:>5}  lr {job[1]:g}  seed {job[2]}  loss {self.runs[job]['final']:.4f}", flush=True)
                self.write({})

    def best_lr(self, kind: str) -> float:
        """The learning rate of the grid with the lowest final validation loss at seed 0."""
        return min(self.arguments.lrs, key=lambda lr: self.runs[kind, lr, 0]["final"])

    def comparison(self, plain_lr: float, noble_lr: float, seeds: int) -> Record:
        """Per seed: final losses, and steps of plain over steps of NOBLE to the same loss; mean and deviation."""
        rows = [self._ratio(plain_lr, noble_lr, seed) for seed in range(seeds)]
        ratios = [row["ratio"] for row in rows]
        return {
            "plain_lr": plain_lr,
            "noble_lr": noble_lr,
            "seeds": rows,
            "ratio_mean": statistics.fmean(ratios),
            "ratio_std": statistics.stdev(ratios) if len(ratios) > 1 else None,
        }

    def _ratio(self, plain_lr: float, noble_lr: float, seed: int) -> Record:
        steps = self.arguments.steps
        plain, noble = self.runs["plain", plain_lr, seed], self.runs["noble", noble_lr, seed]
        reached = train_bytes.steps_to_reach(train_bytes.Curve(**noble["curve"]), plain["final"])
        if reached is not None:
            ratio = steps / reached
        else:  # NOBLE lost: the plain model's step at NOBLE's final loss, a ratio below 1
            ratio = train_bytes.steps_to_reach(train_bytes.Curve(**plain["curve"]), noble["final"]) / steps
        return {"seed": seed, "plain": plain["final"], "noble": noble["final"], "reached": reached, "ratio": ratio}

    def write(self, summary: Record) -> None:
        """Settings, summary and every curve, as JSON."""
        settings = {**self.settings, "seeds": self.arguments.seeds, "lrs": list(self.arguments.lrs)}
        settings |= {"jobs": self.arguments.jobs, "batch": 16, "context": 128, "width": 128, "layers": 4, "heads": 4}
        values = {"settings": settings, "environment": environment(), **summary, "runs": list(self.runs.values())}
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        self.arguments.out.write_text(as_json(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lrs", type=float, nargs="+", default=LRS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; the threads are shared between them")
    parser.add_argument("--resume", action="store_true", help="keep the runs of an earlier, equal measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    bench = Bench(parser.parse_args())
    arguments, seeds = bench.arguments, range(bench.arguments.seeds)

    bench.run([(kind, lr, 0) for kind in KINDS for lr in sorted(arguments.lrs)])
    best = {kind: bench.best_lr(kind) for kind in KINDS}
    bench.run([(kind, best[kind], seed) for kind in KINDS for seed in seeds])
    summary = {
        "same_lr": [bench.comparison(lr, lr, seeds=1) for lr in arguments.lrs],
        "best_vs_best": bench.comparison(best["plain"], best["noble"], arguments.seeds),
    }
    bench.write(summary)
    show(summary)


def show(summary: Record) -> None:
    """Print the grid at seed 0, and each model at its best over the seeds."""
    console, best = Console(), summary["best_vs_best"]
    grid = Table("learning rate of both", "plain's final loss", "NOBLE's", "reached at step", "ratio", title="Seed 0")
    for part in summary["same_lr"]:
        grid.add_row(f"{part['plain_lr']:g}", *_cells(part["seeds"][0]))
    console.print(grid)
    title = f"Best against best: plain at {best['plain_lr']:g}, NOBLE at {best['noble_lr']:g}"
    table = Table("seed", "plain's final loss", "NOBLE's", "reached at step", "ratio", title=title)
    for row in best["seeds"]:
        table.add_row(str(row["seed"]), *_cells(row))
    console.print(table)
    spread = "" if best["ratio_std"] is None else f" ± {best['ratio_std']:.2f} (standard deviation over seeds)"
    console.print(f"ratio of steps {best['ratio_mean']:.2f}{spread}")


def _cells(row: Record) -> tuple[str, str, str, str]:
    reached = "never" if row["reached"] is None else f"{row['reached']:.0f}"
    return f"{row['plain']:.4f}", f"{row['noble']:.4f}", reached, f"{row['ratio']:.2f}"


if __name__ == "__main__":
    main()

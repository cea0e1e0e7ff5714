"""Which runs a stage still wants, given those that are done.

tuned     an arm's rates, doubled and halved until the best one has been beaten on both sides
seeds     that rate from more seeds
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.effect.folder import final_loss
from benchmarks.effect.run import Record, Run

START = (2e-3, 4e-3)
LIMITS = (1e-5, 1.0)  # a rate beyond them is no rate

Records = Mapping[Run, Record]


def losses(records: Records, task: str, arm: str, steps: int, seed: int = 0) -> dict[float, float]:
    """Final loss by rate, of the runs that are done."""
    return {
        run.lr: final_loss(record)
        for run, record in records.items()
        if (run.task, run.arm, run.steps, run.seed) == (task, arm, steps, seed)
    }


def wanted_rates(found: Mapping[float, float], start: Sequence[float] = START) -> list[float]:
    """The rates to try next; none once the best one has a neighbour on either side."""
    if missing := [rate for rate in start if rate not in found]:
        return missing
    best = min(found, key=lambda rate: found[rate])
    return [rate for rate in (best / 2, best * 2) if rate not in found and LIMITS[0] < rate < LIMITS[1]]


def best_rate(records: Records, task: str, arm: str, steps: int) -> float | None:
    """The best rate of an arm at seed 0; None where the search is not over or every run diverged."""
    found = losses(records, task, arm, steps)
    if not found or wanted_rates(found, ()):
        return None
    best = min(found, key=lambda rate: found[rate])
    return best if found[best] < float("inf") else None


def start_rates(records: Records, task: str, arm: str, steps: int) -> tuple[float, ...]:
    """Where to begin: at the best rate of the same arm on the task over fewer steps, where that is known."""
    shorter = sorted({run.steps for run in records if run.task == task and run.arm == arm and run.steps < steps})
    known = [rate for fewer in shorter if (rate := best_rate(records, task, arm, fewer)) is not None]
    return (known[-1],) if known else START


def screening(records: Records, tasks: Iterable[str], arms: Sequence[str], steps: int) -> Iterator[Run]:
    """Rates of every arm, seed 0."""
    for task in tasks:
        for arm in arms:
            found = losses(records, task, arm, steps)
            for rate in wanted_rates(found, () if found else start_rates(records, task, arm, steps)):
                yield Run(task, arm, steps, rate, 0)


def finals(records: Records, tasks: Sequence[str], arms: Sequence[str], steps: int, seeds: int) -> Iterator[Run]:
    """The same, and then the best rate from the other seeds."""
    yield from screening(records, tasks, arms, steps)
    for task in tasks:
        for arm in arms:
            if (rate := best_rate(records, task, arm, steps)) is not None:
                for seed in range(1, seeds):
                    if (run := Run(task, arm, steps, rate, seed)) not in records:
                        yield run

"""The tables of a study, in Markdown: what `docs/effect.md` shows, and a test compares with it.

A ratio of steps is plain's steps over the arm's to the loss that plain has at best: 1.2 says that a sixth of the steps
is saved. Where an arm never gets there, it is plain's step at the arm's best loss over all steps, which is below 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.effect.arms import ARMS
from benchmarks.effect.folder import final_loss
from benchmarks.effect.plan import Records, best_rate, losses
from benchmarks.effect.run import Record
from noble_fx.demo.training import Curve, steps_to_reach

PLAIN = "plain"
# Student's t at 97.5 %, by how many seeds there are: an interval that holds 95 % of what repeating would give.
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


@dataclass(frozen=True)
class Standing:
    """An arm against plain over the seeds that both have, each at its own best rate."""

    arm: str
    rate: float
    parameters: int
    losses: tuple[float, ...]  # held out, after the last step
    ratios: tuple[float, ...]  # of steps, paired by seed; empty for plain

    @property
    def ratio(self) -> float:
        """The mean ratio of steps."""
        return statistics.fmean(self.ratios)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where 95 % of repetitions would have the mean; None for fewer than two seeds."""
        if len(self.ratios) < 2:
            return None
        half = _T[len(self.ratios)] * statistics.stdev(self.ratios) / math.sqrt(len(self.ratios))
        return self.ratio - half, self.ratio + half


def ratio_of_steps(plain: Record, arm: Record) -> float:
    """Plain's steps over the arm's to plain's best loss; below 1 where the arm does not get there."""
    goal, total = min(plain["validation"]), plain["at"][plain["validation"].index(min(plain["validation"]))]
    if (reached := steps_to_reach(_curve(arm), goal)) is not None:
        return total / reached
    if not arm["validation"]:  # it diverged before it was looked at
        return 0.0
    return (steps_to_reach(_curve(plain), min(arm["validation"])) or 0.0) / total


def _curve(record: Record) -> Curve:
    return Curve(steps=record["at"], validation=record["validation"])


def standings(records: Records, task: str, steps: int) -> list[Standing]:
    """Every arm whose rate is tuned, plain first, the others by their ratio."""
    rates = {arm: best_rate(records, task, arm, steps) for arm in ARMS}
    if rates[PLAIN] is None:
        return []
    found = [_standing(records, task, arm, steps, rate, rates[PLAIN]) for arm, rate in rates.items() if rate]
    return sorted(found, key=lambda standing: (standing.arm != PLAIN, -standing.ratio if standing.ratios else 0.0))


def _standing(records: Records, task: str, arm: str, steps: int, rate: float, plain_rate: float) -> Standing:
    def of(name: str, at: float) -> dict[int, Record]:
        return {
            run.seed: record
            for run, record in records.items()
            if (run.task, run.arm, run.steps, run.lr) == (task, name, steps, at)
        }

    own, plain = of(arm, rate), of(PLAIN, plain_rate)
    pairs = sorted(set(own) & set(plain)) if arm != PLAIN else []
    return Standing(
        arm,
        rate,
        own[0]["parameters"],
        tuple(final_loss(own[seed]) for seed in sorted(own)),
        tuple(ratio_of_steps(plain[seed], own[seed]) for seed in pairs),
    )


def screen_table(records: Records, task: str, steps: int) -> Iterator[str]:
    """Every arm of a screening at its best rate, and at half and twice that, the best arm first."""
    yield f"| arm | parameters | best rate | loss | at half the rate | at twice | over plain | steps |\n{_rule(8)}"
    shown = standings(records, task, steps)
    plain = next((standing for standing in shown if standing.arm == PLAIN), None)
    for each in sorted(shown, key=lambda standing: standing.losses[0]):
        found = losses(records, task, each.arm, steps)
        beside = [_loss(found[each.rate * factor]) for factor in (0.5, 2)]
        over = f"{each.losses[0] - plain.losses[0]:+.3f}" if plain and each is not plain else ""
        ratio = f"{each.ratios[0]:.2f}×" if each.ratios else ""
        name = f"**{each.arm}**" if each is plain else each.arm
        cells = (name, f"{each.parameters:,}", f"{each.rate:g}", _loss(each.losses[0]), *beside, over, ratio)
        yield f"| {' | '.join(cells)} |"


def final_table(records: Records, task: str, steps: int, pace: Mapping[str, float]) -> Iterator[str]:
    """Finalists of a task: losses over seeds, the ratio of steps with its interval, and of time at this `pace`."""
    yield (
        f"| arm | parameters | rate | seeds | loss | spread | steps to plain's best | 95 % | time to it |\n{_rule(9)}"
    )
    for each in standings(records, task, steps):
        spread = f"± {statistics.stdev(each.losses):.3f}" if len(each.losses) > 1 else ""
        ratio, interval, wall = "", "", ""
        if each.ratios:
            ratio = f"{each.ratio:.2f}× fewer" if each.ratio >= 1 else f"{each.ratio:.2f}"
            interval = "{:.2f} to {:.2f}".format(*each.interval) if each.interval else ""
            wall = f"{pace[each.arm] / each.ratio - 1:+.0%}" if each.arm in pace else ""
        cells = (
            f"**{each.arm}**" if each.arm == PLAIN else each.arm,
            f"{each.parameters:,}",
            f"{each.rate:g}",
            str(len(each.losses)),
            _loss(statistics.fmean(each.losses)),
            spread,
            ratio,
            interval,
            wall,
        )
        yield f"| {' | '.join(cells)} |"


def diverged(records: Records, task: str, steps: int) -> dict[str, list[float]]:
    """The rates at which runs of each arm diverged, lowest first."""
    out: dict[str, list[float]] = {}
    for run in sorted(records):
        if (run.task, run.steps) == (task, steps) and records[run]["diverged_at"]:
            out.setdefault(run.arm, []).append(run.lr)
    return out


def _loss(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "diverged"


def _rule(columns: int) -> str:
    return "|---" + "|---:" * (columns - 1) + "|"


def tables(records: Records, pace: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """All of it: a table for each task and number of steps."""
    for task, steps in sorted({(run.task, run.steps) for run in records}):
        several = any(run.seed for run in records if (run.task, run.steps) == (task, steps))
        yield f"\n{task}, {steps:,} steps, {'several seeds' if several else 'one seed'}\n"
        if several:
            yield from final_table(records, task, steps, pace.get(task, {}))
        else:
            yield from screen_table(records, task, steps)
        for arm, rates in diverged(records, task, steps).items():
            yield f"\ndiverged: {arm} at {', '.join(f'{rate:g}' for rate in rates)}"

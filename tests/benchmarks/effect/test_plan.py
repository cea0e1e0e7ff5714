"""Which runs a study wants: the best rate has a neighbour on either side before it counts."""

from __future__ import annotations

import pytest

from benchmarks.effect import plan
from benchmarks.effect.run import Run


def record(loss: float) -> dict[str, object]:
    return {"diverged_at": 5 if loss == float("inf") else None, "validation": [loss]}


def search(loss_of, start=plan.START) -> tuple[dict[float, float], int]:
    """Run the search to its end on a made-up loss by rate."""
    found: dict[float, float] = {}
    rounds = 0
    while wanted := plan.wanted_rates(found, start if not found else ()):
        found |= {rate: loss_of(rate) for rate in wanted}
        rounds += 1
    return found, rounds


@pytest.mark.parametrize("best", [2.5e-4, 1e-3, 2e-3, 3.2e-2, 1.28e-1])
def test_the_best_is_never_at_an_edge(best):
    found, _ = search(lambda rate: abs(rate / best - 1) if rate < 0.5 else float("inf"))
    chosen = min(found, key=lambda rate: found[rate])
    assert chosen == pytest.approx(best)
    assert min(found) < chosen < max(found)


def test_a_search_ends_where_everything_diverges():
    found, _ = search(lambda rate: float("inf"))
    records = {Run("digits", "paper", 10, rate, 0): record(loss) for rate, loss in found.items()}
    assert plan.best_rate(records, "digits", "paper", 10) is None


def test_a_rate_counts_once_the_search_is_over():
    records = {Run("digits", "plain", 10, rate, 0): record(rate) for rate in (2e-3, 4e-3)}
    assert plan.best_rate(records, "digits", "plain", 10) is None
    records[Run("digits", "plain", 10, 1e-3, 0)] = record(1.0)
    assert plan.best_rate(records, "digits", "plain", 10) == 2e-3


def test_finalists_start_where_the_screening_ended_and_get_more_seeds():
    records = {Run("digits", "plain", 10, rate, 0): record(abs(rate - 4e-3)) for rate in (2e-3, 4e-3, 8e-3)}
    assert list(plan.finals(records, ["digits"], ["plain"], 100, 3)) == [Run("digits", "plain", 100, 4e-3, 0)]
    records |= {Run("digits", "plain", 100, rate, 0): record(abs(rate - 4e-3)) for rate in (2e-3, 4e-3, 8e-3)}
    wanted = list(plan.finals(records, ["digits"], ["plain"], 100, 3))
    assert wanted == [Run("digits", "plain", 100, 4e-3, 1), Run("digits", "plain", 100, 4e-3, 2)]
    records |= {run: record(1.0) for run in wanted}
    assert not list(plan.finals(records, ["digits"], ["plain"], 100, 3))

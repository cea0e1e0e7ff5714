"""The study's figures: ratios of steps, their interval, and tables."""

from __future__ import annotations

import pytest

from benchmarks.effect import report
from benchmarks.effect.run import Run


def curve(*values: float, diverged_at: int | None = None) -> dict[str, object]:
    at = [10 * (i + 1) for i in range(len(values))]
    return {"at": at, "validation": list(values), "diverged_at": diverged_at, "parameters": 100}


PLAIN = curve(4.0, 3.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("arm", "ratio"),
    [
        (curve(3.0, 1.0, 0.5, 0.4), 2.0),  # there at step 20 of 40
        (curve(3.0, 2.0, 1.5, 0.5), 40 / 35),  # between 30 and 40
        (PLAIN, 1.0),
        (curve(4.0, 3.5, 3.2, 3.0), 0.5),  # its best loss is plain's at step 20
        (curve(9.0), 0.25),  # plain was better when it was first looked at, at step 10: at most this
        (curve(diverged_at=3), 0.0),
    ],
)
def test_the_ratio_of_steps(arm, ratio):
    assert report.ratio_of_steps(PLAIN, arm) == pytest.approx(ratio)


def test_the_goal_is_plains_best_loss_where_it_rises_again():
    assert report.ratio_of_steps(curve(3.0, 1.0, 2.0), curve(1.0, 1.0, 1.0)) == 2.0


def study() -> dict[Run, dict[str, object]]:
    records = {}
    for arm, by_seed in {
        "plain": [PLAIN] * 3,
        "paper": [curve(3.0, 1.0), curve(3.0, 2.0, 1.0), curve(2.0, 1.0)],
    }.items():
        for seed, values in enumerate(by_seed):
            records[Run("digits", arm, 40, 2e-3, seed)] = values
        records[Run("digits", arm, 40, 1e-3, 0)] = curve(5.0, 5.0)
        records[Run("digits", arm, 40, 4e-3, 0)] = curve(diverged_at=7)
    return records


def test_an_interval_is_students():
    _, paper = report.standings(study(), "digits", 40)
    assert paper.ratios == (2.0, pytest.approx(4 / 3), 2.0)
    low, high = paper.interval
    assert (low + high) / 2 == pytest.approx(paper.ratio)
    assert high - low == pytest.approx(2 * 4.303 * 0.3849 / 3**0.5, rel=1e-3)


def test_tables_say_what_there_is():
    screened = list(report.screen_table(study(), "digits", 40))
    assert "| paper | 100 | 0.002 | 1.000 | 5.000 | diverged | +0.000 | 2.00× |" in screened
    final = list(report.final_table(study(), "digits", 40, {"paper": 1.5}))
    assert any(line.startswith("| **plain** | 100 | 0.002 | 3 | 1.000 | ± 0.000 |") for line in final)
    assert any("1.78× fewer | 0.82 to 2.73 | -16% |" in line for line in final)
    assert report.diverged(study(), "digits", 40) == {"paper": [4e-3], "plain": [4e-3]}


def test_an_arm_that_is_not_tuned_is_not_shown():
    records = {run: record for run, record in study().items() if (run.arm, run.lr) != ("paper", 4e-3)}
    assert [standing.arm for standing in report.standings(records, "digits", 40)] == ["plain"]

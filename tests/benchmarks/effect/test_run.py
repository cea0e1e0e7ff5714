"""One run of the study: its record, and what is written where it diverges."""

from __future__ import annotations

import pytest
import torch

from benchmarks.effect.run import Run, train


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_run_learns_and_says_how():
    record = train(Run("digits", "flat", 40, 4e-3, 0), evaluations=4)
    assert record["at"] == [10, 20, 30, 40]
    assert record["validation"][-1] < record["validation"][0]
    assert record["diverged_at"] is None
    assert record["parameters"] > train(Run("digits", "plain", 2, 4e-3, 0), evaluations=1)["parameters"]


def test_a_run_is_the_same_each_time():
    run = Run("digits", "paper", 6, 4e-3, 1)
    first, again = train(run, evaluations=2), train(run, evaluations=2)
    assert first["validation"] == again["validation"]


def test_a_run_that_diverges_is_a_record_too():
    record = train(Run("digits", "plain", 40, 30.0, 0), evaluations=4)
    assert 1 < record["diverged_at"] <= 40

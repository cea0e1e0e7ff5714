"""The loop that plain and NOBLE share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.demo import training
from noble_fx.demo.byte_gpt import ByteGPT
from noble_fx.demo.text import standard_library


@pytest.mark.parametrize(
    ("losses", "goal", "expected"),
    [
        ([4.0, 3.0, 2.0], 2.5, 25.0),  # half way between 20 and 30
        ([4.0, 3.0, 2.0], 2.0, 30.0),
        ([4.0, 3.0, 2.0], 4.0, 10.0),
        ([4.0, 3.0, 2.0], 5.0, 10.0),  # before the first evaluation nothing is known
        ([4.0, 2.0, 3.0], 3.0, 15.0),  # the first crossing counts
        ([4.0, 3.0, 2.0], 1.9, None),
        ([float("nan")] * 3, 1.9, None),
    ],
)
def test_steps_to_reach(losses: list[float], goal: float, expected: float | None) -> None:
    assert training.steps_to_reach(training.Curve([10, 20, 30], losses), goal) == expected


def test_schedule_warms_up_then_falls_to_a_tenth() -> None:
    factors = [training.schedule(step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99] == max(factors) == 1.0
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_groups_multiplier_survives_the_schedule(library: Path) -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow, self.fast = nn.Parameter(torch.zeros(256)), nn.Parameter(torch.zeros(256))

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            return (self.slow + self.fast).expand(*idx.shape, 256)

    model = Twin()
    groups = [{"params": [p], "lr": lr, "weight_decay": 0.0} for p, lr in ((model.slow, 1e-3), (model.fast, 5e-3))]
    training.train(model, groups, standard_library(library), steps=5, batch=2, context=16, evaluations=1)
    assert groups[0]["lr"] == 1e-3  # the caller's groups can be used again
    torch.testing.assert_close(model.fast, 5 * model.slow)


def test_two_runs_of_one_seed_are_equal(library: Path) -> None:
    def final() -> float:
        torch.manual_seed(0)
        model = ByteGPT(width=32, layers=2, heads=2, context=32)
        groups = noble_fx.param_groups(model, lr=1e-3, weight_decay=0.1)
        curve = training.train(model, groups, standard_library(library), 3, batch=2, context=32, evaluations=1)
        return curve.validation[-1]

    assert final() == final()

"""The arms of the study: what they share, and what their branches learn at."""

from __future__ import annotations

import pytest
import torch

from benchmarks.effect.arms import ARMS, role_of
from benchmarks.effect.tasks import TASKS

TASK = TASKS["digits"]


def rates(arm: str, lr: float = 2e-3) -> dict[str, set[float]]:
    """Rates of an arm's groups by role."""
    model = ARMS[arm].build(TASK, seed=0)
    out: dict[str, set[float]] = {}
    for group in ARMS[arm].groups(model, lr):
        out.setdefault(role_of(group), set()).add(round(group["lr"] / lr, 6))
    return out


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_built_and_runs(name):
    model = ARMS[name].build(TASK, seed=0)
    assert any(".noble." in key for key in model.state_dict()) is (ARMS[name].settings is not None)
    assert TASK.loss(model, TASK.batch(0, 0)).isfinite()


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if not arm.init_base and not arm.widened])
def test_arms_share_the_weights_that_they_start_from(name):
    plain, other = ARMS["plain"].build(TASK, seed=3).state_dict(), ARMS[name].build(TASK, seed=3).state_dict()
    assert all(torch.equal(value, other[key]) for key, value in plain.items())


def test_init_base_draws_the_weights_alone():
    model, plain = ARMS["plain, init_base"].build(TASK, seed=0), ARMS["plain"].build(TASK, seed=0)
    assert model.state_dict().keys() == plain.state_dict().keys()
    weight = model.blocks[0].ffn.fc_in.weight
    assert weight.std().item() == pytest.approx(0.5 * 64**-0.5, rel=0.05)
    assert torch.equal(model.head.weight, plain.head.weight)


def test_the_widened_model_is_as_large():
    def size(arm: str) -> int:
        return sum(parameter.numel() for parameter in ARMS[arm].build(TASKS["bytes128"], seed=0).parameters())

    assert size("plain, widened") == pytest.approx(size("paper"), rel=0.03)


def test_multipliers_are_the_presets_scaled_or_absolute():
    paper, half, flat = rates("paper"), rates("paper, U M × 0.5"), rates("flat")
    assert half["up"] == {round(rate / 2, 6) for rate in paper["up"]}
    assert half["frequency"] == paper["frequency"] == {3.0}
    assert set().union(*flat.values()) == {1.0}
    assert rates("paper, ω φ absolute", lr=1e-3)["phase"] == {5.0}
    assert rates("paper, ω φ absolute", lr=2e-3)["phase"] == {2.5}

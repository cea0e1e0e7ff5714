"""The r × r preconditioner: projections, the freedom of the basis, momentum, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.rules import LoraPro, Preconditioned
from tests.models import tiny, tokens
from tests.training.rules.linear import SCALE, model, projections, w_step, with_gradients

EXACT = {"rtol": 1e-9, "atol": 1e-9}
SMALL = 1e-13


def test_both_at_once_count_what_both_reach_twice():
    made = model()
    (g,) = with_gradients(made)
    Preconditioned(made, damping=SMALL).before_step()
    p_up, p_down = projections(made[0].noble)
    torch.testing.assert_close(w_step(made[0].noble), p_up @ g + g @ p_down, **EXACT)


def test_in_turns_each_makes_its_projection():
    made = model()
    rule = Preconditioned(made, rule="altlora", damping=SMALL, beta=0.0)
    branch = made[0].noble
    for seed, side in enumerate(["up", "down", "up", "down"]):
        (g,) = with_gradients(made, seed)
        rule.before_step()
        p_up, p_down = projections(branch)
        if side == "up":
            assert branch.down.grad is None
            torch.testing.assert_close(SCALE * branch.up.grad @ branch.down.detach(), g @ p_down, **EXACT)
        else:
            assert branch.up.grad is None
            torch.testing.assert_close(SCALE * branch.up.detach() @ branch.down.grad, p_up @ g, **EXACT)


def test_momentum_is_carried_into_the_space_that_is_there_now():
    """s U (P m) is the part of s U_old m that the columns of U reach today."""
    made, beta = model(), 0.9
    rule = Preconditioned(made, rule="altlora", damping=SMALL, beta=beta)
    branch = made[0].noble
    rule._turn = 1  # D first
    with_gradients(made, 1)
    rule.before_step()
    old_up, mean = branch.up.detach().clone(), rule._moments["0/down"]["mean"].clone()
    with torch.no_grad():
        branch.up.add_(torch.randn(branch.up.shape, dtype=torch.float64), alpha=0.3)
    rule._turn = 1
    (g,) = with_gradients(made, 2)
    rule.before_step()
    p_up, _ = projections(branch)
    wanted = beta * p_up @ (SCALE * old_up @ mean) + (1 - beta) * p_up @ g
    own = SCALE * branch.up.detach() @ branch.down.grad * (1 - beta**2)
    torch.testing.assert_close(own, wanted, **EXACT)


@pytest.mark.parametrize("rule", ["riemannian", "altlora"])
def test_the_step_of_the_matrix_does_not_depend_on_the_basis(rule):
    """U R and R⁻¹ D make the same ΔW, and stay the same after steps of SGD, to second order in its rate."""
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 3 * torch.eye(3)

    def trained(change, lr=1e-6):
        made = model()
        branch = made[0].noble
        if change:
            with torch.no_grad():
                branch.up.copy_(branch.up @ mix)
                branch.down.copy_(torch.linalg.inv(mix) @ branch.down)
        start = SCALE * (branch.up @ branch.down).detach()
        optimizer = torch.optim.SGD(branch.parameters(), lr=lr)
        own = Preconditioned(made, rule=rule, damping=SMALL)
        for seed in range(4):
            with_gradients(made, seed)
            own.before_step()
            optimizer.step()
        return (SCALE * (branch.up @ branch.down).detach() - start) / lr

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["riemannian", "altlora"])
def test_a_linear_branch_that_starts_at_zero_learns(rule):
    made = noble_fx.zero_branches(noble_fx.transform(tiny(), rank=4, act="identity", seed=0))
    noble_fx.set_trainable(made, "branches")
    optimizer = torch.optim.SGD(noble_fx.param_groups(made, lr=0.3))
    own = Preconditioned(made, rule=rule)
    handle = own.on(optimizer)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(made(tokens()).flatten(0, 1), tokens().flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.isfinite().all() for parameter in made.parameters())
    handle.remove()
    turn = own._turn
    optimizer.step()
    assert own._turn == turn


def test_a_resumed_run_goes_on_as_it_was():
    def steps(made, own, seeds):
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        for seed in seeds:
            with_gradients(made, seed)
            own.before_step()
            optimizer.step()

    made = model()
    own = Preconditioned(made, rule="altlora")
    steps(made, own, range(3))
    twin = copy.deepcopy(made)
    other = Preconditioned(twin, rule="altlora")
    other.load_state_dict(own.state_dict())
    steps(made, own, range(3, 6))
    steps(twin, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ConfigError, match="'0/down', and the model has no such pair"):
        Preconditioned(noble_fx.transform(tiny(), rank=4, act="identity"), rule="altlora").load_state_dict(
            own.state_dict()
        )


def test_another_rank_begins_its_momentum_anew():
    made = noble_fx.transform(tiny(), rank=4, act="identity", seed=0)
    own = Preconditioned(made, rule="altlora")
    for rank in (4, 4, 6, 6, 3, 3):
        if made.blocks[0].fc1.noble.rank != rank:
            noble_fx.set_rank(made, rank)
        made(tokens()).square().mean().backward()
        own.before_step()
    assert own._moments["blocks.0.fc1/up"]["mean"].shape == (3, 32)


def test_a_frozen_matrix_never_has_its_turn():
    made = model()
    made[0].noble.down.requires_grad_(False)
    own = Preconditioned(made, rule="altlora", damping=SMALL)
    for seed in range(2):
        (g,) = with_gradients(made, seed)
        made[0].noble.down.grad = None
        own.before_step()
        assert made[0].noble.up.grad.norm() > 0
        assert g.shape == (9, 12)


def test_bfloat16_is_solved_in_float32():
    made = model().bfloat16()
    with_gradients(made.double())
    made = made.bfloat16()
    for parameter in made[0].noble.parameters():
        parameter.grad = parameter.detach().clone()
    Preconditioned(made).before_step()
    assert made[0].noble.up.grad.dtype == torch.bfloat16
    assert made[0].noble.up.grad.isfinite().all()


def test_what_is_refused():
    made = model()
    with pytest.raises(ConfigError, match="rule='newton' must be one of 'riemannian', 'altlora'"):
        Preconditioned(made, rule="newton")
    with pytest.raises(ConfigError, match="damping=0 must be a number above 0"):
        Preconditioned(made, damping=0)
    with pytest.raises(ConfigError, match="beta=1 must be"):
        Preconditioned(made, beta=1)
    own = Preconditioned(made, rule="altlora")
    for optimizer in (torch.optim.AdamW(made.parameters()), torch.optim.SGD(made.parameters(), momentum=0.9)):
        with pytest.raises(ConfigError, match="would average once more in a basis that has moved"):
            own.on(optimizer)
    own.on(torch.optim.AdamW(made.parameters(), betas=(0.0, 0.95)))
    own.on(torch.optim.SGD(made.parameters(), momentum=0.0))


class Largest(TorchDispatchMode):
    """How many entries the largest result of an operator had."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self.entries = max(self.entries, each.numel())
        return result


@pytest.mark.parametrize(
    "made_rule",
    [
        Preconditioned,
        lambda made: Preconditioned(made, rule="altlora"),
        LoraPro,
    ],
)
def test_nothing_is_as_large_as_the_layer(made_rule):
    made = noble_fx.transform(nn.Sequential(nn.Linear(90, 70)), rank=2, act="identity", select="all")
    own = made_rule(made)
    for _ in range(4):
        made(torch.randn(3, 90)).square().sum().backward()
        with Largest() as largest:
            own.before_step()
        assert 0 < largest.entries <= 2 * 90

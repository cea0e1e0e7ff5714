"""LoRA-Pro's gradient is the nearest to the whole one that D and U can make of it, in float64."""

import pytest
import torch

import noble_fx
from noble_fx.branches.factors import Factors
from noble_fx.training.rules import LoraPro
from noble_fx.training.rules.inverse import spectra
from noble_fx.training.rules.lora_pro import equivalent, sylvester
from tests.training.rules.linear import SCALE, model, projections, w_step, with_gradients

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def stepped(damping=1e-13):
    made = model()
    (g,) = with_gradients(made)
    branch = made[0].noble
    before = branch.up.grad.clone(), branch.down.grad.clone()
    LoraPro(made, damping=damping).before_step()
    return branch, g, before


def test_the_step_is_the_projection_of_the_whole_gradient():
    branch, g, _ = stepped()
    p_up, p_down = projections(branch)
    best = p_up @ g + (torch.eye(len(p_up)).double() - p_up) @ g @ p_down
    torch.testing.assert_close(w_step(branch), best, **EXACT)
    assert (w_step(branch) - g).norm() < 0.95 * g.norm()


def test_what_it_leaves_of_g_is_out_of_reach():
    branch, g, _ = stepped()
    left = g - w_step(branch)
    assert left.norm() > 0.1 * g.norm()
    torch.testing.assert_close(branch.up.detach().T @ left, torch.zeros_like(branch.down.detach()), **EXACT)
    torch.testing.assert_close(left @ branch.down.detach().T, torch.zeros_like(branch.up.detach()), **EXACT)


def test_it_descends():
    branch, _, (up, down) = stepped()
    gained = (up * branch.up.grad).sum() + (down * branch.down.grad).sum()
    torch.testing.assert_close(gained, w_step(branch).square().sum(), **EXACT)


def test_every_x_makes_the_same_step_and_ours_is_nearest_to_the_gradients():
    branch, _, (up, down) = stepped()
    step, generator = w_step(branch), torch.Generator().manual_seed(0)

    def distance():
        return float((branch.up.grad - up).square().sum() + (branch.down.grad - down).square().sum())

    ours = distance()
    own_up, own_down = branch.up.grad.clone(), branch.down.grad.clone()
    for size in (1e-3, 0.1, 1.0):
        x = size * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        branch.up.grad, branch.down.grad = own_up - branch.up.detach() @ x, own_down + x @ branch.down.detach()
        torch.testing.assert_close(w_step(branch), step, **EXACT)
        assert distance() > ours


def test_u_of_zeros_takes_the_best_step_of_u():
    made = model()
    branch = made[0].noble
    with torch.no_grad():
        branch.up.zero_()
    (g,) = with_gradients(made)
    LoraPro(made).before_step()
    assert torch.equal(branch.down.grad, torch.zeros_like(branch.down))
    torch.testing.assert_close(w_step(branch), g @ projections(branch)[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frozen", ["down", "up"])
def test_of_a_pair_with_one_frozen_matrix_the_other_does_what_it_can(frozen):
    made = model()
    (g,) = with_gradients(made)
    branch = made[0].noble
    parameter = branch.get_parameter(frozen)
    parameter.requires_grad_(False)
    parameter.grad = None
    LoraPro(made, damping=1e-13).before_step()
    assert parameter.grad is None
    p_up, p_down = projections(branch)
    if frozen == "down":
        torch.testing.assert_close(SCALE * branch.up.grad @ branch.down.detach(), g @ p_down, **EXACT)
    else:
        torch.testing.assert_close(SCALE * branch.up.detach() @ branch.down.grad, p_up @ g, **EXACT)


def test_a_pair_that_no_loss_reached_is_left_alone():
    made = model(2)
    with_gradients(made)
    made[1].noble.zero_grad()
    LoraPro(made).before_step()
    assert made[1].noble.up.grad is None
    assert made[0].noble.up.grad is not None


def test_the_equation_of_x_is_solved():
    generator = torch.Generator().manual_seed(0)
    left, right, wanted = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    left, right = left @ left.T, right @ right.T
    x = sylvester(*spectra([left, right]), wanted, 0.0)
    torch.testing.assert_close(left @ x + x @ right, wanted, rtol=1e-8, atol=1e-8)


def test_no_matrix_of_the_layers_size_is_made():
    """K = N = 100,000: one [N, K] in float32 would be 40 GB."""
    size, rank = 100_000, 2
    pair = Factors("", torch.nn.Parameter(torch.randn(rank, size)), torch.nn.Parameter(torch.randn(size, rank)))
    of_up, of_down = spectra([pair.up.detach().T @ pair.up.detach(), pair.down.detach() @ pair.down.detach().T])
    up, down = equivalent(pair, torch.randn(size, rank), torch.randn(rank, size), of_up, of_down, 1e-8)
    assert up.shape == (size, rank)
    assert down.shape == (rank, size)


def test_a_nonlinear_branch_is_refused():
    made = noble_fx.transform(torch.nn.Linear(8, 8), rank=2, act="gelu", select="all")
    with pytest.raises(noble_fx.ConfigError, match=r"σ \(gelu\) stands between D and U"):
        LoraPro(made)

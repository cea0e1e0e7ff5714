"""An affine σ as a matrix and a vector."""

import pytest
import torch
from torch import nn

from noble_fx import NobleBranch, NobleConfig
from noble_fx.branches.activations import Mixer, ScaleShift, Signed
from noble_fx.branches.adapters import Weighted
from noble_fx.branches.affine import affine_map, is_affine
from noble_fx.config import PRESETS

RANK = 4
ACTS = {
    "identity": nn.Identity,
    "diagonal": lambda: ScaleShift(RANK),
    "mixer": lambda: Mixer(RANK, PRESETS["reference"]),
    "linear": lambda: nn.Linear(RANK, RANK),
    "chain": lambda: nn.Sequential(nn.Linear(RANK, 2 * RANK), nn.Linear(2 * RANK, RANK)),
    "signed": lambda: Signed(nn.Linear(RANK, RANK), flip=True),
    "gate": lambda: Weighted(torch.rand(RANK)),
}


@pytest.mark.parametrize("name", ACTS)
def test_it_is_the_map(name):
    torch.manual_seed(0)
    act = ACTS[name]().double()
    for parameter in act.parameters():
        nn.init.normal_(parameter)
    h = torch.randn(6, RANK, dtype=torch.float64)
    matrix, shift = affine_map(act, h, RANK)
    assert is_affine(act)
    torch.testing.assert_close(h @ matrix.t() + shift, act(h), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("name", ACTS)
def test_a_branch_with_such_a_sigma_is_merged(name, preset):
    torch.manual_seed(0)
    config = NobleConfig(rank=RANK, act=lambda rank: ACTS[name](), preset=preset)
    branch = NobleBranch(7, 9, RANK, config).double()
    for parameter in branch.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 7, dtype=torch.float64)
    weight, bias = branch.merged()
    torch.testing.assert_close(nn.functional.linear(x, weight, bias), branch(x), rtol=1e-12, atol=1e-12)


def test_what_is_none():
    assert not is_affine(nn.GELU())
    assert not is_affine(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    changed = nn.Identity()
    changed.forward = torch.cos
    assert not is_affine(changed)

"""σ of a linear branch with something between D and U."""

import dataclasses

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.branches.activations import Mixer, ScaleShift, build_activation
from noble_fx.config import NobleConfig
from noble_fx.training.initial import core, diagonal
from noble_fx.training.initial.cores import core_of

PRESET = NobleConfig().recipe


@pytest.mark.parametrize(("make", "kind", "shape"), [(core, "core", (5, 5)), (diagonal, "diagonal", (5,))])
def test_they_are_known_and_start_at_zero(make, kind, shape):
    act = make(5)
    found, parameter = core_of(act)
    assert (found, tuple(parameter.shape)) == (kind, shape)
    assert torch.equal(act(torch.randn(3, 5)), torch.zeros(3, 5))


def test_what_is_more_than_that_is_none():
    others = [
        *(build_activation(name, 5, PRESET) for name in ("cosnet", "gelu", "identity", "swiglu")),
        *(nn.Linear(5, 5), ScaleShift(5), ScaleShift(5, scale=False), None),
    ]
    assert [core_of(act) for act in others] == [None] * len(others)
    biased = Mixer(5, dataclasses.replace(PRESET, mixer_bias=True))
    assert core_of(biased) is None


@pytest.mark.parametrize("act", [core, diagonal])
def test_a_branch_with_one_is_fused_and_learns_through_it(act):
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 9)), rank=3, act=act, select="all", seed=0)
    branch = model[0].noble
    assert branch.unfused == ""
    model(torch.randn(4, 8)).square().sum().backward()
    (_, parameter) = core_of(branch.act)
    assert parameter.grad.abs().max() > 0

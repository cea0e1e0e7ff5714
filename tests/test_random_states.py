"""Whatever is drawn while a model is looked at, the user's own draws are as if nobody had."""

import random
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.random_states import random_states_kept, undisturbed


def seeded():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_draws_are_the_same_inside_and_as_if_they_had_not_been_outside():
    seeded()
    expected = draws()
    seeded()
    with undisturbed() as by_whom:
        assert by_whom() == ""
        first = torch.rand(2)
        assert by_whom() == ""
        np.random.rand()
        assert by_whom() == "NumPy's"
    with undisturbed():
        assert torch.equal(torch.rand(2), first)
    assert draws() == expected


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_same_numbers_come_next_whatever_happened(error):
    seeded()
    expected = draws()
    seeded()
    with suppress(ValueError, KeyboardInterrupt), random_states_kept():
        draws()
        if error is not None:
            raise error
    assert draws() == expected


class Draws(nn.Module):
    """Draws from everywhere, in layers whose names tell no role, so that forward is looked at."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.two(self.one(x)) * random.random() * float(np.random.rand()) + torch.rand(())


@pytest.mark.parametrize("capture", ["modules", "fx", "export"])
def test_no_verb_draws_for_the_user(capture):
    model, x = Draws(), torch.randn(4, 8)
    given = {"example_inputs": (x,)} if capture == "export" else {}
    seeded()
    expected = draws()
    seeded()
    noble_fx.sites(model)
    with nullcontext() if capture == "modules" else pytest.raises(noble_fx.CaptureError):
        noble_fx.transform(model, rank=2, select=".*", seed=0, capture=capture, **given)
    assert draws() == expected


def test_a_seed_does_not_reach_the_generators_of_gpus(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(0)
    assert seeds == [0]
    noble_fx.reset_branches(noble_fx.transform(Draws(), rank=2, select=".*", seed=0))
    noble_fx.programs(noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=2, select=".*", seed=0))
    assert seeds == [0]

"""The random state of one layer."""

import torch
from torch import nn

from noble_fx import NobleConfig
from noble_fx.branches.drawing import drawing
from noble_fx.branches.noble import NobleBranch


def drawn(seed: int | None, name: str) -> torch.Tensor:
    with drawing(NobleConfig(seed=seed), name):
        return torch.randn(4)


def test_with_a_seed_it_depends_on_the_name_alone_and_leaves_the_callers_state():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = drawn(1, "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    assert torch.equal(drawn(1, "a"), first)
    assert not torch.equal(drawn(1, "b"), first)
    assert not torch.equal(drawn(2, "a"), first)


def test_without_a_seed_it_is_the_callers():
    torch.manual_seed(0)
    first = drawn(None, "a")
    torch.manual_seed(0)
    assert torch.equal(first, torch.randn(4))


def test_it_is_on_the_cpu_whatever_the_default_device():
    for seed in (1, None):
        with torch.device("meta"):
            assert drawn(seed, "a").device.type == "cpu"


def test_nothing_is_drawn_where_there_are_no_values(monkeypatch):
    drawn = []
    for name in ("normal_", "uniform_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **settings: drawn.append(tensor))
    for preset in ("paper", "reference"):
        NobleBranch.on_meta(8, 8, 4, NobleConfig(rank=4, preset=preset))
    assert drawn == []
    NobleBranch(8, 8, 4, NobleConfig(rank=4))
    assert len(drawn) == 7

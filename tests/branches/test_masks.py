"""σ with masks and gates, and without them again."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.branches.activations import Mixer, Signed, build_activation
from noble_fx.branches.masks import ChannelMask, bare, gate_of, gated, has_other_names, masked, masks_of
from noble_fx.config import NobleConfig
from noble_fx.errors import Refusal

PRESET = NobleConfig().recipe
ZOO = [name for name in noble_fx.activation_names() if name in ("cosnet", "cosnet_double", "cos", "identity", "gelu")]
ZOO += ["swiglu_net", "neg_silu", "gelu_scale"]
LIKE = torch.empty(0, dtype=torch.float64)


def sigma(name, rank=6):
    torch.manual_seed(0)
    return build_activation(name, rank, PRESET).double()


@pytest.mark.parametrize("name", ZOO)
def test_there_and_back(name):
    act, h = sigma(name), torch.randn(5, 6, dtype=torch.float64)
    there = masked(act, 6, "root", LIKE)
    assert torch.equal(there(h), act(h))
    assert torch.equal(gated(act, 6, LIKE)(h), act(h))
    for changed in (there, gated(act, 6, LIKE)):
        back = bare(changed)
        assert list(back.state_dict()) == list(act.state_dict())
        assert all(a is b for a, b in zip(back.parameters(), act.parameters(), strict=True))
    assert not masks_of(bare(there))


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_first_channels_hear_nothing_of_the_others(name, count):
    act, h = sigma(name), torch.randn(5, 6, dtype=torch.float64)
    there = masked(act, 6, "none", LIKE)
    for mask in masks_of(there):
        mask.ask(count)
    other = h.clone()
    other[:, count:] += 1
    assert torch.equal(there(other), there(h))
    assert (there(h)[:, count:] == 0).all()
    assert (there(h)[:, :count] != 0).any()


def test_a_matrix_counts_as_its_block():
    act, h = sigma("cosnet"), torch.randn(5, 6, dtype=torch.float64)
    there = masked(act, 6, "none", LIKE)
    for mask in masks_of(there):
        mask.ask(4)
    first = act.first(h)[:, :4]
    mixed = first @ act.mixer.weight[:4, :4].T + (0 if act.mixer.bias is None else act.mixer.bias[:4])
    wanted = torch.cos(act.second.frequency[:4] * mixed + act.second.phase[:4])
    torch.testing.assert_close(there(h)[:, :4], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("normalise", "factor"), [("none", 1.0), ("alpha", 4.0), ("root", 2.0)])
def test_modes_and_factors(normalise, factor):
    mask = ChannelMask(8, normalise, LIKE).train()
    mask.draw(2)
    assert mask.mask.tolist() == [factor] * 2 + [0.0] * 6
    assert mask.eval().mask.tolist() == [1.0] * 8
    mask.ask(2)
    assert mask.mask.tolist() == [factor] * 2 + [0.0] * 6
    mask.ask(0)
    assert mask.mask.tolist() == [1.0] * 8
    assert mask.train().mask[2:].count_nonzero() == 0
    assert mask.state_dict() == {}


def test_names_of_a_chain_stay_and_of_a_single_part_do_not():
    for name, other in (("cosnet", False), ("cos", True), ("gelu", False)):
        assert has_other_names(masked(sigma(name), 6, "none", LIKE)) == other
        assert has_other_names(gated(sigma(name), 6, LIKE))
    assert not has_other_names(None)


def test_a_gate_is_found_and_a_gate_of_sigmas_own_is_none():
    assert gate_of(sigma("swiglu")) is None
    assert gate_of(nn.Identity()) is None
    assert gate_of(gated(sigma("swiglu"), 6, LIKE)).scale.tolist() == [1.0] * 6


def test_where_no_mask_fits():
    inside = masked(Signed(nn.Sequential(Mixer(6, PRESET)), flip=False), 6, "none", LIKE)
    assert isinstance(inside, Refusal)
    assert "inside a Signed" in inside.reason
    wide = masked(nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6)), 6, "none", LIKE)
    assert isinstance(wide, Refusal)
    assert "reads 9 numbers and not the 6 channels" in wide.reason

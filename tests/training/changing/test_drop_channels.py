"""Channels that a branch can do without go before it is folded."""

import re

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.training.changing.drop_channels import drop_channels


def model(act="cosnet", rank=8):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16))
    noble_fx.transform(made, rank=rank, act=act, select="all", preset="reference", seed=0)
    with torch.no_grad():
        for layer in made:
            layer.noble.up.normal_()
    return made.double()


def unheard(branch, channels):
    """Nobody hears these channels: not U, and not the matrix inside σ, where there is one."""
    with torch.no_grad():
        branch.up[:, channels] = 0
        for name, parameter in branch.act.named_parameters():
            if name.endswith("mixer.weight"):
                parameter[:, channels] = 0


@pytest.mark.parametrize("act", ["cosnet", "gelu", "cos"])
def test_what_nobody_hears_is_taken_out_and_nothing_else(act):
    made, x = model(act), torch.randn(64, 16, dtype=torch.float64)
    with torch.no_grad():
        unheard(made[0].noble, [1, 4, 6])
    folded = noble_fx.fold(made, drop=0, inputs=x)
    assert [layer.noble.rank for layer in folded] == [5, 8]
    torch.testing.assert_close(folded(x), made(x), rtol=0, atol=1e-5 * made(x).abs().max().item())
    assert made[0].noble.rank == 8


def test_more_may_be_lost_where_it_is_allowed():
    made, x = model(), torch.randn(64, 16, dtype=torch.float64)
    off = [noble_fx.fold(made, drop=drop, inputs=x)[0] for drop in (0, 0.2, 0.6)]
    ranks = [layer.noble.rank for layer in off]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] < ranks[0]
    branch = made[0].noble
    for layer, drop in zip(off, (0, 0.2, 0.6), strict=True):
        error = (layer.noble(x) - branch(x)).norm() / branch(x).norm()
        assert error <= max(drop, 1e-6) * 1.001


def test_without_inputs_it_is_measured_on_noise():
    made = model()
    unheard(made[0].noble, [2])
    assert noble_fx.fold(made, drop=1e-4)[0].noble.rank == 7


def test_a_channel_that_only_u_does_not_hear_stays_where_sigma_mixes():
    made = model()
    with torch.no_grad():
        made[0].noble.up[:, 2] = 0
    assert noble_fx.fold(made, drop=1e-4)[0].noble.rank == 8


def test_a_sigma_that_cannot_have_another_rank_keeps_its_own():
    made = model(lambda rank: nn.Softmax(-1))  # which mixes all channels
    assert drop_channels(made, 0.9) == []
    assert made[0].noble.rank == 8


def test_what_was_dropped_is_told():
    made = model()
    unheard(made[0].noble, [0, 1, 2])
    (change,) = drop_channels(made, 0.0)
    assert (change.fqn, change.before, change.after) == ("0", 8, 5)


@pytest.mark.parametrize("drop", [1, -0.1, True, "all", float("nan")])
def test_a_share_that_is_none_is_refused(drop):
    with pytest.raises(noble_fx.ConfigError, match="0 ≤ drop < 1"):
        noble_fx.fold(model(), drop=drop)


def test_inputs_without_a_share_are_refused():
    with pytest.raises(noble_fx.ConfigError, match=re.escape("inputs are what drop=… measures on")):
        noble_fx.fold(model(), inputs=torch.randn(3, 16))


def test_dropped_beside_a_factorized_weight(tmp_path):
    from noble_fx.bases.low_rank import LowRank
    from noble_fx.layers.restructure import structure

    made, x = model().float(), torch.randn(64, 16)
    base = LowRank(16, 24, 4)
    base.fill(made[0].weight)
    structure(made[0], base, made[0].bias)
    unheard(made[0].noble, [2])
    folded = noble_fx.fold(made, drop=0, inputs=x)
    assert folded[0].noble.rank == 7
    torch.testing.assert_close(folded(x), made(x), rtol=1e-4, atol=1e-4)
    assert noble_fx.export_onnx(made, (x,), tmp_path / "m.onnx").largest_error < 1e-3

"""FLOPs by formula are those that torch counts."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import noble_fx
from noble_fx.explaining.cost import base_flops, branch_flops
from tests.models import tiny, tokens
from tests.samples import ACTIVATIONS, sampled

ROWS = 3


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("act", sampled(noble_fx.activation_names(), ACTIVATIONS & {*noble_fx.activation_names()}))
@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_a_layer_and_its_branch(act, preset):
    model = noble_fx.transform(nn.Sequential(nn.Linear(24, 40)), rank=8, act=act, preset=preset, fuse=False)
    (site,), layer = noble_fx.sites(model), model[0]
    ours = base_flops(site, layer) + branch_flops(layer.noble)
    assert ROWS * ours == counted(lambda: model(torch.ones(ROWS, 24)))
    assert ROWS * base_flops(site) == 2 * ROWS * 24 * 40


def test_sigma_of_cosnet_has_a_matrix():
    branch = noble_fx.transform(nn.Sequential(nn.Linear(24, 40)), rank=8)[0].noble
    assert branch_flops(branch) == 2 * (8 * 24 + 8 * 40 + 8 * 8)


def test_a_whole_model_without_its_attention():
    explained = noble_fx.explain(noble_fx.transform(tiny(), rank=4, fuse=False))
    model = noble_fx.transform(tiny(), rank=4, fuse=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens())
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for operator, count in counts.items() if str(operator) in ("aten.mm", "aten.addmm"))
    assert tokens().numel() * (explained.base_flops + explained.branch_flops) == products


def test_a_convolution_in_groups_multiplies_less():
    layer = nn.Conv2d(8, 16, 1, groups=4)
    (site,) = noble_fx.sites(nn.Sequential(layer), select="all")
    assert 6 * base_flops(site, layer) == counted(lambda: layer(torch.ones(1, 8, 2, 3)))

"""Layers whose linear maps no branch can reach."""

import pytest
import torch
from torch import nn

from noble_fx import NobleLinear, Refusal
from noble_fx.layers.registry import augmented_class, describe, obstacle


@pytest.mark.parametrize(
    ("layer", "described", "reason"),
    [
        (nn.LSTM(8, 6), ("LSTM", 8, 6), "recurrent"),
        (nn.GRU(8, 6), ("GRU", 8, 6), "recurrent"),
        (nn.RNNCell(8, 6), ("RNNCell", 8, 6), "recurrent"),
        (nn.Bilinear(8, 7, 6), ("Bilinear", 8, 6), "bilinear in two inputs"),
    ],
)
def test_they_are_listed_with_the_reason(layer, described, reason):
    assert describe(layer) == described
    assert reason in obstacle(layer).reason
    assert augmented_class(layer) is None


def test_a_packed_weight_is_known_by_its_method():
    plain = nn.Sequential(nn.Linear(8, 6))
    (layer,) = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    assert describe(layer) == ("quantized Linear", 8, 6)
    assert obstacle(layer).reason == "quantized: its weight is packed"


@pytest.mark.parametrize(
    "layer", [nn.Embedding(8, 6), nn.LayerNorm(8), nn.Conv2d(8, 6, 3), nn.Conv1d(8, 8, 1, groups=8)]
)
def test_what_is_no_linear_map_is_not_listed(layer):
    assert describe(layer) is None


class Packed(nn.Module):
    """GPTQ's layer: no weight, packed integers."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 8, 6
        self.register_buffer("qweight", torch.zeros(1, 6, dtype=torch.int32))


class OwnLinear(nn.Module):
    """A linear layer of another library."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 8, 6
        self.weight = nn.Parameter(torch.zeros(6, 8))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Packed(), "Packed is no known class of linear layer, and has no weight but packed ones"),
        (OwnLinear(), "OwnLinear is no known class of linear layer; noble_fx.register_layer makes it one"),
    ],
)
def test_a_layer_that_says_its_widths_is_listed(layer, reason):
    assert describe(layer) == (type(layer).__name__, 8, 6)
    assert obstacle(layer) == Refusal(reason)


def test_what_holds_layers_is_none():
    holder = nn.ModuleList([nn.Linear(8, 6)])
    holder.in_features, holder.out_features = 8, 6
    assert describe(holder) is None
    assert describe(NobleLinear.build(8, 8, rank=2).noble) is None

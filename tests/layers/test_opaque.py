"""Layers whose linear maps no branch can reach."""

import pytest
import torch
from torch import nn

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
    "layer", [nn.Embedding(8, 6), nn.LayerNorm(8), nn.Conv2d(8, 6, 3), nn.Conv1d(8, 8, 1, groups=2)]
)
def test_what_is_no_linear_map_is_not_listed(layer):
    assert describe(layer) is None

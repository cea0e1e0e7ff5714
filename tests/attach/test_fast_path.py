"""Encoder layers take no path that would go past their branches."""

from torch import nn

import noble_fx
from noble_fx.attach.fast_path import keep_from_fast_path


def encoder() -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)


def test_off_with_a_branch_and_on_again_without():
    model = encoder()
    assert (model.use_nested_tensor, model.layers[0].activation_relu_or_gelu) == (True, 1)
    noble_fx.transform(model, branch="lora", rank=2, select=["layers.0.linear1"])
    assert (model.use_nested_tensor, model.layers[0].activation_relu_or_gelu) == (False, 0)
    noble_fx.drop_adapters(model)
    assert (model.use_nested_tensor, model.layers[0].activation_relu_or_gelu) == (True, 1)


def test_a_plain_model_stays():
    model = encoder()
    keep_from_fast_path(model)
    assert model.layers[0].activation_relu_or_gelu == 1

"""Adapters of other libraries inside a model."""

import torch
from torch import Tensor, nn

import noble_fx
from noble_fx.sites.adapters import why_adapter
from tests.models import tiny


class Lora(nn.Module):
    """What peft's LoRA puts in the place of a layer."""

    __module__ = "peft.tuners.lora.layer"

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 8, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(8, layer.out_features, bias=False)})
        self.strange = nn.Linear(layer.in_features, layer.out_features)  # of a tuner that nobody here knows

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Wrapping(nn.Linear):
    """peft's VB-LoRA and RandLoRA: a subclass of nn.Linear around the layer itself."""

    __module__ = "peft.tuners.vblora.layer"

    def __init__(self, layer: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.base_layer = layer

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


def wrapped() -> nn.Module:
    model = tiny()
    model.blocks[0].q_proj = Lora(model.blocks[0].q_proj)
    model.blocks[0].fc1 = Wrapping(model.blocks[0].fc1)
    return model


def test_auto_takes_the_layer_that_was_wrapped_and_none_of_the_adapter():
    model = wrapped()
    sites = {site.fqn.removeprefix("blocks.0."): site for site in noble_fx.sites(model, rank=4)}
    assert sites["q_proj.base_layer"].selected
    assert sites["fc1.base_layer"].selected
    for name in ("q_proj.lora_A.default", "q_proj.lora_B.default", "q_proj.strange", "fc1"):
        assert not sites[name].selected
        assert "peft's" in sites[name].reason
    assert sites["q_proj.lora_A.default"].reason == "lora_A of peft's Lora: an adapter, not a map of the model itself"
    noble_fx.transform(model, rank=4)
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 20)


def test_an_adapter_is_taken_where_it_is_named():
    sites = noble_fx.sites(wrapped(), rank=4, select=["blocks.0.q_proj.lora_A.default"])
    assert [site.fqn for site in sites if site.selected] == ["blocks.0.q_proj.lora_A.default"]


def test_matrices_are_known_by_name_in_every_library():
    class LoRALinear(nn.Module):  # torchtune's
        def __init__(self):
            super().__init__()
            self.lora_a, self.lora_b, self.linear = nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 8)

    model = nn.Sequential(LoRALinear())
    assert [bool(why_adapter(model, f"0.{name}")) for name in ("lora_a", "lora_b", "linear")] == [True, True, False]

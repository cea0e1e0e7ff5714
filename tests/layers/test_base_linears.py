"""The filter that tools which convert a model take: the base model's own linear layers, and nothing of a branch."""

import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import noble_fx
from noble_fx.layers.quantized import foreign


class Mixed(nn.Module):
    """An activation with an nn.Linear inside, which every tool takes for one of the model's."""

    def __init__(self, rank: int):
        super().__init__()
        self.inner = nn.Linear(rank, rank)

    def forward(self, h):
        return torch.tanh(self.inner(h))


def model() -> nn.Module:
    parts = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(16, 2), "fc": nn.Linear(16, 16), "head": nn.Linear(16, 4)}
    )
    return noble_fx.transform(parts, rank=3, act=Mixed, select=["fc"])


def test_it_takes_linear_layers_with_a_branch_and_without():
    taken = {fqn for fqn, module in model().named_modules() if noble_fx.base_linears(module, fqn)}
    assert taken == {"fc", "head"}


def test_with_it_a_branch_stays_as_it_is():
    made = model()
    quantize_(made, Int8WeightOnlyConfig(), filter_fn=noble_fx.base_linears)
    assert {name for name, p in made.named_parameters() if foreign(p)} == {"fc.weight", "head.weight"}
    assert all(p.requires_grad for p in made.fc.noble.parameters())

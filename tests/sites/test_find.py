"""Every linear map of a model, once."""

import torch
from torch import nn

import noble_fx
from noble_fx.sites.find import find_maps
from tests.models import tiny


def test_layers_first_then_parameters_each_once():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.zeros(2, 4, 6))
            self.attention, self.layer = nn.MultiheadAttention(4, 2), nn.Linear(4, 4)
            self.again = self.layer

        def forward(self, x):
            return self.layer(x) @ self.experts[0]

    found = [linear_map.site.fqn for linear_map in find_maps(Both())]
    assert found == ["attention.out_proj", "layer", "experts", "attention.in_proj_weight"]


def test_branches_are_no_maps_of_the_model():
    model = tiny()
    before = [linear_map.site.fqn for linear_map in find_maps(model)]
    noble_fx.transform(model, rank=2, act=lambda rank: nn.Linear(rank, rank))
    assert [linear_map.site.fqn for linear_map in find_maps(model)] == before

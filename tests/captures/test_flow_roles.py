"""Roles that names do not tell: from a trace of a copy, only where one is open."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.captures import flow_roles
from noble_fx.captures.flow_roles import maps_with_roles
from tests.models import tiny


def roles(model: nn.Module) -> dict[str, str]:
    return {linear_map.site.fqn: linear_map.site.role for linear_map in maps_with_roles(model)}


def test_nested_sequentials_are_read_through():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.GELU()), nn.Dropout(0.1), nn.Linear(16, 8))
    assert roles(model) == {"0.0": "ffn.in", "2": "ffn.out"}
    assert {site.fqn: site.role for site in noble_fx.sites(model, rank=4)} == {"0.0": "ffn.in", "2": "ffn.out"}


def test_a_forward_of_its_own_order_is_followed():
    class Backwards(nn.Sequential):
        def forward(self, x):
            for layer in reversed(self):
                x = layer(x)
            return x

    assert roles(Backwards(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))) == {"0": "ffn.out", "2": "ffn.in"}


class Unnamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Optional(Unnamed):
    def forward(self, x, mask=None):
        return super().forward(x)


def test_what_cannot_be_traced_keeps_the_role_of_its_name():
    assert roles(Unnamed()) == {"a": "ffn.in", "b": "ffn.out"}
    assert roles(Optional()) == {"a": "other", "b": "other"}


def test_nothing_is_traced_where_names_tell_every_role_that_matters(monkeypatch):
    def trace(model):
        raise AssertionError("traced")

    monkeypatch.setattr(flow_roles, "trace", trace)
    assert roles(tiny())["head"] == "head"
    with pytest.raises(AssertionError, match="traced"):
        roles(Unnamed())

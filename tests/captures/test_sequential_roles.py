"""Roles from the order of an nn.Sequential."""

from torch import nn

import noble_fx
from noble_fx.captures.sequential_roles import roles_of_sequentials


def test_nested_sequentials_are_read_through():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.GELU()), nn.Dropout(0.1), nn.Linear(16, 8))
    assert roles_of_sequentials(model) == {"0.0": "ffn.in", "2": "ffn.out"}
    assert {site.fqn: site.role for site in noble_fx.sites(model, rank=4)} == {"0.0": "ffn.in", "2": "ffn.out"}


def test_one_inside_another_class():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    assert roles_of_sequentials(Outer()) == {"mlp.0": "ffn.in", "mlp.2": "ffn.out"}


def test_a_subclass_or_a_replaced_forward_may_run_in_any_order():
    class Backwards(nn.Sequential):
        def forward(self, x):
            for layer in reversed(self):
                x = layer(x)
            return x

    layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)]
    assert roles_of_sequentials(Backwards(*layers)) == {}
    replaced = nn.Sequential(*layers)
    replaced.forward = lambda x: x
    assert roles_of_sequentials(replaced) == {}

"""The penalty of a model is the sum of those of its ordered bases."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError


@pytest.mark.parametrize("guide", [0.0, 0.5])
def test_it_adds_up_over_the_layers_and_is_differentiable(guide):
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 6))
    noble_fx.transform(model, rank=2, select="all", base="ordered", guide=guide, seed=0)
    penalty = noble_fx.hierarchical_lasso(model)
    bases = [getattr(layer.base, "inner", layer.base) for layer in model]
    expected = sum(b.up[:, j:].norm() + b.down[j:].norm() for b in bases for j in range(b.rank))
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    assert all(p.grad is not None for base in bases for p in base.parameters())


def test_without_ordered_bases_it_is_an_error():
    model = nn.Sequential(nn.Linear(8, 12))
    noble_fx.transform(model, rank=2, select="all", base="factorized", base_rank=2)
    with pytest.raises(ConfigError, match="no bases with ordered parts; transform"):
        noble_fx.hierarchical_lasso(model)

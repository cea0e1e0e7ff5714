"""Layers that get another form of W and their weight back, with and without a branch; and those that cannot."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import noble_fx
from noble_fx.bases.low_rank import LowRank
from noble_fx.bases.spectral import Spectral
from noble_fx.layers.restructure import densify, exchange_base, matrix_of, structure, why_dense, why_eager_with


def factorized(layer, rank=3):
    base = LowRank(*reversed(matrix_of(layer).shape), rank).to(matrix_of(layer).dtype)
    base.fill(matrix_of(layer))
    structure(layer, base, layer.bias)
    return layer


def test_there_and_back_is_the_merged_weight():
    layer = factorized(nn.Linear(12, 20).double())
    expected = layer.weight.detach().clone()
    densify(layer)
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, expected)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_a_transposed_layer_keeps_its_layout():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    layer = conv1d(20, 12).double()
    nn.init.normal_(layer.weight)
    x = torch.randn(3, 12, dtype=torch.float64)
    before = layer(x)
    factorized(layer, rank=12)
    assert layer.weight.shape == (12, 20)
    torch.testing.assert_close(layer(x), before, rtol=1e-10, atol=1e-10)


def test_a_branch_stays_and_runs_beside():
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 12)).double()
    noble_fx.transform(model, rank=4, select="all", seed=0)
    x = torch.randn(5, 12, dtype=torch.float64)
    branch = model[0].noble
    expected = branch(x)
    factorized(model[0])
    assert model[0].noble is branch
    assert not branch.unfused
    torch.testing.assert_close(
        model[0](x), nn.functional.linear(x, model[0].weight, model[0].bias) + expected, rtol=1e-12, atol=1e-12
    )
    again = copy.deepcopy(model)
    assert torch.equal(again(x), model(x))
    noble_fx.remove(model)
    assert type(model[0]).__name__ == "StructuredLinear"
    densify(model[0])
    assert type(model[0]) is nn.Linear


def test_with_its_weight_back_a_branch_is_fused_again():
    model = noble_fx.transform(nn.Sequential(nn.Linear(12, 20)), rank=4, select="all", seed=0)
    densify(factorized(model[0]))
    assert type(model[0]).__name__ == "NobleLinear"
    assert not model[0].noble.unfused


def test_how_its_branch_would_run_is_known_before_its_w_has_another_form():
    layer = nn.Linear(12, 20)
    assert "its weight is spectral, beside which" in str(why_eager_with(layer, Spectral.on_meta(12, 20, 3)))
    assert type(layer) is nn.Linear
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert not dict(layer.named_children())


def test_a_base_is_exchanged_for_another():
    layer = factorized(nn.Linear(12, 20).double(), rank=6)
    layer.base.requires_grad_(False)
    layer.eval()
    shorter = layer.base.truncated(2)
    exchange_base(layer, shorter)
    assert layer.base is shorter
    assert not shorter.training
    assert not any(p.requires_grad for p in shorter.parameters())
    x = torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, shorter.merged(), layer.bias))


class Own(nn.Linear):
    def forward(self, x):
        return x @ self.weight.t()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LayerNorm(4), "no linear layer of which this is known"),
        (nn.Conv2d(4, 4, 1), "no linear layer of which this is known"),
        (nn.MultiheadAttention(4, 2), "no linear layer of which this is known"),
        (Own(4, 4), "has a forward of its own, which reads its weight"),
        (parametrizations.weight_norm(nn.Linear(4, 4)), "parametrized"),
        (nn.Linear(4, 4).to(torch.float8_e4m3fn), "float8"),
        (factorized(nn.Linear(8, 8)), "has another form already"),
    ],
)
def test_what_must_stay_dense_says_why(layer, reason):
    assert reason in str(why_dense(layer))


def test_a_plain_layer_may_have_another_form():
    assert why_dense(nn.Linear(4, 4)) is None

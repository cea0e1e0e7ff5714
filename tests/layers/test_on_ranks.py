"""The fused call on DTensors: which layouts have a rule, and that it is what the layer and its branch give."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import noble_fx
from noble_fx.distributed import lay_beside
from noble_fx.layers.on_ranks import fused_on_ranks
from tests.models import loud
from tests.one_rank import one_rank


def layer_on(mesh, placement, bias=True, **settings):
    torch.manual_seed(0)
    layer = loud(noble_fx.transform(nn.Linear(8, 6, bias=bias), rank=3, seed=0, **settings)).double()
    for name, parameter in list(layer.named_parameters(recurse=False)):
        laid = placement if name == "weight" or placement == Shard(0) else Replicate()
        layer._parameters[name] = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [laid]))
    lay_beside(layer.noble, layer.weight, "[N, K]")
    return layer


def results(y, x, layer):
    gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    return [y.full_tensor(), *(gradient.full_tensor() for gradient in gradients)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize(
    ("of_x", "of_weight", "of_y"),
    [(Replicate(), Shard(0), Shard(2)), (Shard(0), Replicate(), Shard(0)), (Replicate(), Replicate(), Replicate())],
)
def test_it_is_the_eager_layer_and_branch(of_x, of_weight, of_y, preset, bias):
    with one_rank() as mesh:
        layer = layer_on(mesh, of_weight, bias, preset=preset)
        x = DTensor.from_local(torch.randn(2, 5, 8, dtype=torch.float64), mesh, [of_x]).requires_grad_()
        y = fused_on_ranks(layer, layer.noble, x)
        assert y.placements == (of_y,)
        found = results(y, x, layer)
        expected = results(nn.functional.linear(x, layer.weight, layer.bias) + layer.noble(x), x, layer)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("of_x", "of_weight"),
    [(Shard(2), Shard(1)), (Partial(), Replicate()), (Shard(0), Shard(0)), (Shard(2), Replicate())],
)
def test_other_layouts_have_no_rule(of_x, of_weight):
    with one_rank() as mesh:
        layer = layer_on(mesh, of_weight)
        x = DTensor.from_local(torch.randn(2, 5, 8, dtype=torch.float64), mesh, [of_x])
        assert fused_on_ranks(layer, layer.noble, x) is None


def test_a_hook_or_a_branch_that_is_not_laid_out_has_none():
    with one_rank() as mesh:
        x = DTensor.from_local(torch.randn(2, 5, 8, dtype=torch.float64), mesh, [Replicate()])
        layer = layer_on(mesh, Shard(0))
        layer.noble.register_forward_hook(lambda *args: None)
        assert fused_on_ranks(layer, layer.noble, x) is None
        layer = layer_on(mesh, Shard(0))
        layer.noble.up = nn.Parameter(layer.noble.up.full_tensor())
        assert fused_on_ranks(layer, layer.noble, x) is None
        layer = layer_on(mesh, Shard(0))
        layer.noble.down = nn.Parameter(distribute_tensor(layer.noble.down.full_tensor().detach(), mesh, [Shard(0)]))
        assert fused_on_ranks(layer, layer.noble, x) is None

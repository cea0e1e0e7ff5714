"""Which nodes others may be moved across."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from noble_fx.passes.effects import has_effect
from noble_fx.passes.match import ModelGraph

aten = torch.ops.aten


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.pure, self.changes = nn.ReLU(), nn.Sequential(nn.ReLU(inplace=True))


def effect(op: str, target, *args, **kwargs) -> bool:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.create_node(op, target, (x, *args), kwargs)
    graph.output(node)
    return has_effect(node, ModelGraph(fx.GraphModule(Calls(), graph)))


def elsewhere(x):
    """A function of a library that nobody knows."""
    return x


@pytest.mark.parametrize(
    ("op", "target", "args", "kwargs"),
    [
        ("call_method", "add_", (1,), {}),
        ("call_method", "__setitem__", (0, 1), {}),
        ("call_function", operator.iadd, (1,), {}),
        ("call_function", operator.setitem, (0, 1), {}),
        ("call_function", torch.relu_, (), {}),
        ("call_function", F.relu, (True,), {}),
        ("call_function", F.relu, (), {"inplace": True}),
        ("call_function", F.dropout, (0.5, True, True), {}),
        ("call_function", aten.add_.Tensor, (1,), {}),
        ("call_function", aten.add_, (1,), {}),
        ("call_function", torch.add, (1,), {"out": 1}),
        ("call_function", torch._C._set_grad_enabled, (), {}),
        ("call_function", torch.amp.autocast_mode._enter_autocast, (), {}),
        ("call_function", torch.ops.higher_order.wrap, (), {}),
        ("call_function", elsewhere, (), {}),
        ("call_module", "changes", (), {}),
    ],
)
def test_effects(op, target, args, kwargs):
    assert effect(op, target, *args, **kwargs)


@pytest.mark.parametrize(
    ("op", "target", "args", "kwargs"),
    [
        ("call_method", "transpose", (0, 1), {}),
        ("call_method", "__add__", (1,), {}),
        ("call_function", operator.add, (1,), {}),
        ("call_function", operator.getitem, (0,), {}),
        ("call_function", operator.invert, (), {}),
        ("call_function", torch.relu, (), {}),
        ("call_function", F.relu, (), {}),
        ("call_function", F.dropout, (0.5, True, False), {}),
        ("call_function", F.scaled_dot_product_attention, (1, 2), {"is_causal": True}),
        ("call_function", torch._C._nn.gelu, (), {}),
        ("call_function", aten.add.Tensor, (1,), {}),
        ("call_function", aten._assert_tensor_metadata.default, (), {}),
        ("call_function", getattr, ("shape",), {}),
        ("call_module", "pure", (), {}),
    ],
)
def test_no_effects(op, target, args, kwargs):
    assert not effect(op, target, *args, **kwargs)

"""The operators in PyTorch operators, by the flat order: what the dispatcher's implementations give."""

import pytest
import torch

from noble_fx import schema
from noble_fx.ops import composite, direct
from noble_fx.ops.operands import Operands
from tests.fused_layer import arguments, group_arguments, layer_of

_ops = torch.ops.noble_fx


@pytest.mark.parametrize("columns", [(16,), (16, 24)])
def test_forward_and_backward(columns):
    layers, x = [layer_of(out_features=n) for n in columns], torch.randn(2, 3, 40)
    grouped = len(columns) > 1
    given = group_arguments(layers, x) if grouped else arguments(layers[0], x)
    flat = direct.flat_of_group(given) if grouped else direct.flat_of_linear(given)
    key = given[-1]
    with torch.no_grad():
        *y, h = composite.forward(flat, len(columns), key)
        forward = (_ops.linear_group_forward if grouped else _ops.linear_forward)(*given)
        assert all(map(torch.equal, y, forward[0] if grouped else [forward[0]]))
        assert torch.equal(h, forward[1])
        dy = [torch.randn_like(each) for each in y]
        needs = [tensor is not None for tensor in flat]
        found = composite.backward(dy, h, flat, len(columns), key, needs)
        x, weight, _, down, _, up, act, key = given
        operator = _ops.linear_group_backward if grouped else _ops.linear_backward
        wanted = operator(dy if grouped else dy[0], x, h, weight, down, up, act, key, needs)
    assert [gradient is not None for gradient in found] == needs
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True) if one is not None)


def test_the_result_is_nobodys_view():
    layer, x = layer_of(), torch.randn(2, 3, 40)
    with torch.no_grad():
        y = layer(x)
    assert not y._is_view()
    flat = Operands.of_linear(*arguments(layer, x)).flat()
    assert not composite.forward(flat, 1, layer.noble.key)[0]._is_view()
    assert schema.LINEAR in schema.RULES

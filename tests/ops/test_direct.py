"""Implementations are called past the dispatcher only where it would find nothing else to do."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from noble_fx import schema
from noble_fx.ops import direct
from tests.fused_layer import arguments, group_arguments, layer_of


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_sees_the_operator(training):
    layer, x = layer_of(), torch.randn(3, 40)
    with torch.set_grad_enabled(training), Seen() as seen:
        layer(x)
    assert "noble_fx.linear_forward.default" in seen.operators if training else "noble_fx.linear.default"


def test_plain_tensors_on_a_known_device_alone():
    tensors = direct.flat_of_linear(arguments(layer_of(), torch.randn(3, 40)))
    assert direct.implementation(tensors) is direct.IMPLEMENTATIONS["cpu"]
    assert direct.implementation([tensor if tensor is None else tensor.to("meta") for tensor in tensors]) is None

    class Own(torch.Tensor):
        pass

    assert direct.implementation([tensors[0].as_subclass(Own), *tensors[1:]]) is None
    with Seen():
        assert direct.implementation(tensors) is None


@pytest.mark.parametrize("bias", [True, False])
def test_the_flat_order_is_that_of_the_operands(bias):
    from noble_fx.ops.operands import Operands

    layers = [layer_of(out_features=n, bias=bias) for n in (8, 16)]
    x = torch.randn(3, 40)
    one, group = arguments(layers[0], x), group_arguments(layers, x)
    assert all(a is b for a, b in zip(direct.flat_of_linear(one), Operands.of_linear(*one).flat(), strict=True))
    assert all(a is b for a, b in zip(direct.flat_of_group(group), Operands.of_group(*group).flat(), strict=True))


def test_the_call_past_the_dispatcher_is_the_operator():
    layer, x = layer_of(), torch.randn(3, 40)
    operands = arguments(layer, x)
    assert torch.equal(schema.call(schema.LINEAR, *operands), schema.LINEAR(*operands))

"""The order of calls, and what is read together."""

import pytest
import torch
from torch import nn

from noble_fx.compressing.calibration import Batch
from noble_fx.compressing.order import Input, first_run, seen
from noble_fx.torch_versions import uncompiled
from tests.compressing.models import batches, exact, places_of


def order_of(model: nn.Module, *inputs: torch.Tensor, select="all"):
    return first_run(model, places_of(model, select), Batch(inputs, {}, "calibration"))


def test_layers_that_read_one_tensor_are_together():
    order = order_of(exact(layers=1), batches()[0], select="auto")
    names = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("fc1",), ("fc2",)
    assert order.groups == tuple(tuple(f"blocks.0.{name}" for name in group) for group in names)
    assert order.once
    assert order.names[:2] == ["blocks.0.q_proj", "blocks.0.k_proj"]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.idle = (nn.Linear(4, 4) for _ in range(4))


def test_not_in_the_order_of_definition_and_one_never():
    class Backwards(Odd):
        def forward(self, x):
            return self.a(self.c(input=x) + self.b(x))

    order = order_of(Backwards(), torch.ones(2, 4))
    assert order.groups == (("c", "b"), ("a",))
    assert "idle" not in order.names


def test_called_twice():
    class Twice(Odd):
        def forward(self, x):
            return self.b(self.a(self.a(x)))

    order = order_of(Twice(), torch.ones(2, 4))
    assert order.groups == (("a",), ("b",))
    assert not order.once


def test_a_tensor_that_changes_in_between_is_another_input():
    class InPlace(Odd):
        def forward(self, x):
            h = x.clone()
            y = self.a(h)
            h += 1
            return y + self.b(h)

    assert order_of(InPlace(), torch.ones(2, 4)).groups == (("a",), ("b",))


def test_an_address_that_is_used_again_is_another_input():
    class Fresh(Odd):
        def forward(self, x):
            return self.a(x + 1) + self.b(x + 2)

    assert order_of(Fresh(), torch.ones(2, 4)).groups == (("a",), ("b",))


def test_an_input_knows_itself():
    x = torch.ones(3)
    known = Input(x)
    assert known.same(x)
    assert not known.same(x.clone())
    x += 1
    assert not known.same(x)
    with torch.inference_mode():
        assert Input(y := torch.ones(2)).same(y)


def test_no_hook_stays():
    model = exact(layers=1)
    places = places_of(model)

    def stop(place, x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), seen(places, stop):
        model(batches()[0])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_compiled_part_runs_its_python():
    model = exact(layers=1)
    model.blocks[0].compile(backend="eager")
    model(batches()[0])
    with uncompiled():
        assert order_of(model, batches()[0], select="auto").names[0] == "blocks.0.q_proj"

"""Operators made of an implementation by flat operands answer as the schema says."""

import torch

from noble_fx import schema
from noble_fx.ops import composite
from noble_fx.ops.direct import Implementation, flat_of_linear
from noble_fx.ops.from_flat import operators_of
from tests.fused_layer import arguments, group_arguments, layer_of, small_layers

MADE = operators_of(Implementation(composite.forward, composite.backward))


def same(found, wanted) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_every_operator_of_the_schema_is_made():
    declared = {name.split("::")[1].split("(")[0] for name in map(str, schema.library._op_defs)}
    assert MADE.keys() == {name for name in declared if name.startswith("linear")}


def test_one_site():
    given = arguments(layer_of(), torch.randn(3, 40))
    ops = torch.ops.noble_fx
    with torch.no_grad():
        same(MADE["linear"](*given), ops.linear(*given))
        y, h = MADE["linear_forward"](*given)
        same((y, h), ops.linear_forward(*given))
        x, weight, _, down, _, up, act, key = given
        needs = [True] * len(flat_of_linear(given))
        needs[1] = False
        backward = y, x, h, weight, down, up, act, key, needs
        found = MADE["linear_backward"](*backward)
        same(found, ops.linear_backward(*backward))
        assert found[1].numel() == 0


def test_a_group():
    given = group_arguments(small_layers(), torch.randn(3, 9))
    ops = torch.ops.noble_fx
    with torch.no_grad():
        same(MADE["linear_group"](*given), ops.linear_group(*given))
        y, h = MADE["linear_group_forward"](*given)
        same((y, h), tuple(ops.linear_group_forward(*given)))
        x, weight, _, down, _, up, act, key = given
        needs = [True] * (1 + 5 * 3 + len(act))
        backward = y, x, h, weight, down, up, act, key, needs
        same(MADE["linear_group_backward"](*backward), ops.linear_group_backward(*backward))

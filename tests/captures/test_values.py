"""Values frozen for a later comparison."""

import functools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.captures.values import MISSING, Unfollowed, freeze, same, state


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Scale:
    value: float
    more: dict


LAYER = nn.Linear(2, 2)
NAMES = {id(LAYER): "layer"}


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: [1, 2], lambda v: v.append(3)),
        (lambda: {"a": [1.0]}, lambda v: v["a"].__setitem__(0, 2.0)),
        (lambda: {"a": 1}, lambda v: v.update(a=True)),
        (lambda: OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
        (lambda: {1, 2}, lambda v: v.add(3)),
        (lambda: Scale(1.0, {"x": Color.RED}), lambda v: v.more.update(x=Color.BLUE)),
        (lambda: SimpleNamespace(f=F.gelu), lambda v: setattr(v, "f", F.relu)),
        (lambda: [functools.partial(F.gelu, approximate="tanh")], lambda v: v[0].keywords.update(approximate="none")),
        (lambda: [LAYER, torch.float32, torch.Size([2])], lambda v: v.pop(0)),
    ],
)
def test_equal_values_are_equal_and_a_changed_one_is_not(make, change):
    value = make()
    frozen = freeze(value, NAMES)
    assert same(frozen, freeze(make(), NAMES))
    change(value)
    assert not same(frozen, freeze(value, NAMES))


def test_a_tensor_is_this_one_unchanged():
    t = torch.ones(2)
    frozen = freeze([t], {})
    assert same(frozen, freeze([t], {}))
    assert not same(frozen, freeze([t.clone()], {}))
    t.add_(1)
    assert not same(frozen, freeze([t], {}))


def test_numbers_are_told_apart_by_their_type():
    assert not same(1, 1.0)
    assert not same(1, True)
    assert same(2.5, 5 / 2)


class Unseen:
    __slots__ = ("x",)


def circle():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (iter([1]), "list_iterator"),
        (threading.Lock(), "lock"),
        (torch.Generator(), "Generator"),
        (Unseen(), "Unseen"),
        (nn.Linear(2, 2), "Linear that is no part of the model"),
        (circle(), "in a circle"),
    ],
)
def test_what_cannot_be_seen_is_not_followed(value, reason):
    with pytest.raises(Unfollowed, match=reason):
        freeze({"key": [value]}, NAMES)


def test_a_method_of_an_objects_own_is_its_function():
    assert state(LAYER, "extra_repr", NAMES) == state(nn.Linear(3, 3), "extra_repr", {})
    assert state(LAYER, "nothing", NAMES) is MISSING

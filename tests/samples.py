"""Which cases of a parametrized test the suite runs; `make test-long` runs the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest

# Of each way to build an activation one: alone, with constants, between mixers, gated, signed.
ACTIVATIONS = {
    "cosnet", "cosnet_double", "cos", "identity", "gelu", "leaky_relu", "relu", "tanh_scale", "silu_shift", "gelu_net",
    "swiglu", "swiglu_net", "flip_silu", "neg_gelu",
}  # fmt: skip


def long(*values: Any) -> Any:
    """A case that the suite leaves out: another one goes the same way through the code."""
    return pytest.param(*values, marks=pytest.mark.long)


def sampled(values: Sequence[Any], names: Collection[str], name: Callable[[Any], str] = str) -> list[Any]:
    """The values as cases of a test; those not named are long. Raises `ValueError` for a name that none has."""
    if unknown := set(names) - {name(value) for value in values}:
        raise ValueError(f"no case is called {unknown}")
    return [pytest.param(v, id=name(v), marks=() if name(v) in names else pytest.mark.long) for v in values]


def crossed(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Every pair of two lists: each value is in one pair of the suite's or more, and the other pairs are long."""
    count = max(len(first), len(second))
    kept = {(at % len(first), at % len(second)) for at in range(count)}
    return [
        pytest.param(one, other, marks=() if (i, j) in kept else pytest.mark.long)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
    ]

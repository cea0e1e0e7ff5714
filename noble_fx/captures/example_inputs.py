"""The example inputs of an exported model as JSON, and inputs made from that: what `load` exports a plain model with.

    a tensor                       {"tensor": [2, 6], "dtype": "int64", "dynamic": [0, 1]}
    a list, a tuple, a dict        {"list": […]}   {"tuple": […]}   {"dict": {name: …}}
    None, a truth value, a number, a text              {"value": …}

Export looks at sizes and dtypes, not at values, so all tensors come back as zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim

from noble_fx.captures.call import Fixed


def describe(examples: dict[str, Any]) -> dict[str, Any] | None:
    """Plain JSON values for the inputs by argument name; None where one has no place in JSON (a user's class)."""
    try:
        return {name: _described(value) for name, value in examples.items()}
    except TypeError:
        return None


def _described(value: Any) -> dict[str, Any]:
    if isinstance(value, Fixed):
        dynamic = [axis for axis, size in enumerate(value.sizes) if size is None]
        return {"tensor": list(value.example), "dtype": str(value.dtype).removeprefix("torch."), "dynamic": dynamic}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(member) for member in value]}
    if type(value) is dict and all(isinstance(name, str) for name in value):
        return {"dict": {name: _described(entry) for name, entry in value.items()}}
    raise TypeError(type(value).__name__)


def rebuild(described: dict[str, Any], device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs by argument name, and their `dynamic_shapes`; raises `ValueError` for what `describe` does not write."""
    built = {name: _rebuilt(value, device) for name, value in described.items()}
    return {name: value for name, (value, _) in built.items()}, {name: shapes for name, (_, shapes) in built.items()}


def _rebuilt(described: Any, device: torch.device) -> tuple[Any, Any]:
    match described:
        case {"tensor": [*sizes], "dtype": str(name), "dynamic": [*axes]}:
            dtype = getattr(torch, name, None)
            if isinstance(dtype, torch.dtype) and all(type(n) is int and n >= 0 for n in [*sizes, *axes]):
                return torch.zeros(sizes, dtype=dtype, device=device), dict.fromkeys(axes, Dim.AUTO) or None
        case {"value": value}:
            return value, None
        case {"list": [*members]} | {"tuple": [*members]}:
            kind = list if "list" in described else tuple
            pairs = [_rebuilt(member, device) for member in members]
            return kind(value for value, _ in pairs), kind(shapes for _, shapes in pairs)
        case {"dict": {**entries}}:
            named = {name: _rebuilt(entry, device) for name, entry in entries.items()}
            return {n: value for n, (value, _) in named.items()}, {n: shapes for n, (_, shapes) in named.items()}
    raise ValueError(f"{described!r} describes no input")

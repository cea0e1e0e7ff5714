"""Experts are run before they are trusted: a small copy by the class's own code, and by the one that has branches.

What a class of experts computes besides its products (an activation, a gate, a clamp, a norm) is its author's. The copy
has the module's own settings and functions, four experts, and few features; both run on the same drawn numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.errors import Refusal
from noble_fx.random_states import random_states_kept
from noble_fx.torch_state import without_autocast

EXPERTS, HIDDEN, INNER = 4, 8, 6
_KNOWN: dict[Any, Refusal | None] = {}  # by class and settings


def why_another_maths(module: Any, plain: type[nn.Module], ours: Callable[[Any, Any], Tensor]) -> Refusal | None:
    """Why `ours(copy, inputs)` is not what the class's own forward computes, or None; asked once for its settings."""
    settings = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    parts = sorted((name, type(part)) for name, part in module._modules.items() if name != "noble")
    key = (plain, *sorted(settings.items()), *map(str, parts))
    if key not in _KNOWN:
        _KNOWN[key] = _compared(module, plain, ours)
    return _KNOWN[key]


def _compared(module: Any, plain: Any, ours: Callable[[Any, Any], Tensor]) -> Refusal | None:
    name, own = plain.__qualname__, getattr(plain.forward, "__wrapped__", plain.forward)
    try:
        with torch.no_grad(), torch.device("cpu"), random_states_kept(), without_autocast("cpu"):
            drawn = torch.Generator().manual_seed(0)
            small, inputs = _small(module, plain, drawn), _inputs(drawn)
            theirs, mine = own(small, *inputs), ours(small, inputs)
            largest = float(theirs.abs().max())
            # Some cast to float32 on their way.
            same = theirs.shape == mine.shape and torch.allclose(theirs, mine, rtol=1e-5, atol=1e-5 * largest)
    except Exception as error:
        cause = str(error).strip().splitlines()[:1]
        return Refusal(
            f"a small copy of {name} could not be run to compare it with what branches stand beside: "
            f"{type(error).__name__}{': ' + cause[0] if cause else ''}"
        )
    return None if same else Refusal(f"{name} computes something else than the experts that are known here")


def _inputs(drawn: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [5, H], small and large; two experts for each, of which one gets none; their weights."""
    hidden = torch.randn(5, HIDDEN, generator=drawn, dtype=torch.float64)
    hidden[3:] *= 20  # where a clamp shows
    index = torch.tensor([[0, 2], [3, 0], [2, 3], [0, 3], [3, 2]])
    return hidden, index, torch.rand(5, 2, generator=drawn, dtype=torch.float64)


def _small(module: Any, plain: type[nn.Module], drawn: torch.Generator) -> Any:
    """A copy of few features, drawn anew in float64."""
    stacks = {name: p for name, p in module._parameters.items() if p is not None}
    up = stacks["gate_up_proj" if "gate_up_proj" in stacks else "up_proj"]
    transposed = bool(getattr(module, "is_transposed", False))
    hidden, outputs = up.shape[1:] if transposed else reversed(up.shape[1:])
    inner = stacks["down_proj"].shape[1 if transposed else 2]
    wide = int(outputs) // int(inner) * INNER
    sizes = {int(outputs): wide, int(inner): INNER, int(hidden): HIDDEN}  # of the last where two are one number

    def small(tensor: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
        values = torch.randn(shape, generator=drawn, dtype=torch.float64)
        return nn.Parameter(values / shape[-1] ** 0.5, requires_grad=tensor.requires_grad)

    def resized(tensor: Tensor) -> nn.Parameter:
        return small(tensor, tuple(sizes.get(size, size) for size in tensor.shape))

    shapes = {"down_proj": (HIDDEN, INNER), "gate_up_proj": (wide, HIDDEN), "up_proj": (wide, HIDDEN)}
    vectors = {"down_proj_bias": (HIDDEN,), "gate_up_proj_bias": (wide,), "up_proj_bias": (wide,)}
    made: Any = plain.__new__(plain)
    vars(made).update({name: _resized_number(value, sizes) for name, value in vars(module).items()})
    vars(made)["num_experts"] = EXPERTS
    own: dict[str, nn.Parameter | None] = {}
    vars(made)["_parameters"] = own
    for name, parameter in module._parameters.items():
        if parameter is None:
            own[name] = None
        elif name in shapes:
            own[name] = small(parameter, (EXPERTS, *(shapes[name][::-1] if transposed else shapes[name])))
        else:
            own[name] = small(parameter, (EXPERTS, *vectors[name]))
    vars(made)["_modules"] = {
        name: _resized_copy(part, resized, sizes)
        for name, part in module._modules.items()
        if name != "noble" and part is not None
    }
    return made


def _resized_copy(part: nn.Module, resized: Callable[[Tensor], nn.Parameter], sizes: dict[int, int]) -> nn.Module:
    memo: dict[int, Any] = {id(tensor): resized(tensor) for tensor in part.parameters()}
    made = copy.deepcopy(part, memo)
    for module in made.modules():
        vars(module).update({name: _resized_number(value, sizes) for name, value in vars(module).items()})
    return made


def _resized_number(value: Any, sizes: dict[int, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_resized_number(each, sizes) for each in value)
    return sizes.get(value, value) if type(value) is int else value

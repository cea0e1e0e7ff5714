"""A model's state as a file can hold it: plain tensors by the user's own names, and extra state as JSON.

the wrappers' parts of names     taken out; the weights are those of the user's own model inside
one tensor under several names   stored once
views of one buffer              stored apart, each on its own
what `get_extra_state` gives     a tensor beside the weights, anything else as JSON
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.branches.base import Branch
from noble_fx.branches.masks import has_other_names
from noble_fx.errors import CheckpointError, printable
from noble_fx.layers.quantized import foreign, is_frozen
from noble_fx.layers.structured import Structured
from noble_fx.wrappers import own_name

# What a safetensors file can hold.
_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64}
_FLOAT8 = {torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz}
_SIGNED = {torch.int8, torch.int16, torch.int32, torch.int64}
_UNSIGNED = {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
DTYPES = _FLOATING | _FLOAT8 | _SIGNED | _UNSIGNED


@dataclass(frozen=True)
class State:
    """What `save` writes; `tied` says under which other name a tensor of several names is stored."""

    tensors: dict[str, Tensor]
    extra: dict[str, Any]
    tied: dict[str, str]


def state_to_save(model: nn.Module) -> State:
    """The state of a model without wrappers around it. Raises `CheckpointError` for what no file can hold."""
    return stored(model, {own_name(key, model): value for key, value in model.state_dict().items()})


def stored(model: nn.Module, named: Mapping[str, Any], gathered: bool = False) -> State:
    """The state of `model`, by own names, as a file can hold it; `gathered` is one whose ties are copies by now."""
    for name, parameter in model.named_parameters():
        if is_frozen(parameter):  # bitsandbytes' in a state_dict is a plain tensor of another shape
            raise _refusal(own_name(name, model), f"{foreign(parameter)}, quantized")
    tied = {
        name: kept
        for name, kept in _tied(model).items()
        if name in named and kept in named and (gathered or _same(named[name], named[kept]))
    }
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    storages: set[int] = set()
    for name, value in named.items():
        if name in tied:
            continue
        if isinstance(value, Tensor):
            tensors[name] = _alone(_plain(name, value), storages)
        else:
            extra[name] = _json(name, value)
    _check_branches(model, tensors, tied)
    return State(tensors, extra, tied)


def _tied(model: nn.Module) -> dict[str, str]:
    """Each further name of a tensor, and its first."""
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        own = own_name(name, model)
        if first.setdefault(id(tensor), own) != own:
            tied[own] = first[id(tensor)]
    return tied


def _same(one: Any, other: Any) -> bool:
    """Whether a state_dict has one tensor twice; a hook may have changed what the model calls one."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    if type(one) is Tensor is type(other) and one.layout == other.layout == torch.strided:
        return one.dtype == other.dtype and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()
    return one is other


def _plain(name: str, value: Tensor) -> Tensor:
    """A tensor that a file can hold, as it is or refused."""
    wrong = ""
    if value.is_meta:
        raise CheckpointError("the model is on the meta device and has no values to save")
    if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
        wrong = f"a {type(value).__name__}, a tensor class of its own"
    elif value.is_quantized or value.layout != torch.strided or value.is_nested:
        wrong = "quantized" if value.is_quantized else "nested" if value.is_nested else f"sparse ({value.layout})"
    elif value.dtype not in DTYPES:
        wrong = f"of dtype {value.dtype}"
    if wrong:
        raise _refusal(name, wrong)
    return value.detach().resolve_conj().resolve_neg().contiguous()


def _refusal(name: str, wrong: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(name)} is {wrong}, which a safetensors file cannot hold; save the model before it is made so, "
        "or its state_dict with torch.save"
    )


def _alone(tensor: Tensor, storages: set[int]) -> Tensor:
    """The tensor in memory that it shares with no other one."""
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.nbytes or storage.data_ptr() in storages:
        tensor = tensor.clone()
    storages.add(tensor.untyped_storage().data_ptr())
    return tensor


def _json(name: str, value: Any) -> Any:
    """Extra state that comes back from JSON as what it was, or refused."""
    try:
        text = json.dumps(value, allow_nan=False)
        if _identical(json.loads(text), value):
            return value
        wrong = f"is a {type(value).__name__} that JSON would give back as something else"
    except (TypeError, ValueError, RecursionError):
        wrong = f"is a {type(value).__name__} that is no JSON"
    raise CheckpointError(
        f"the extra state {printable(name)} {wrong}; a file without code holds a tensor, or dictionaries with text as "
        "keys, lists, numbers and text: let get_extra_state give those, or use torch.save"
    )


def _identical(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_identical(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_identical, one, other))
    return bool(one == other)


def _check_branches(model: nn.Module, tensors: dict[str, Tensor], tied: dict[str, str]) -> None:
    """Refuse a branch, or a layer that carries one, whose tensors are not what `load` will make of the settings."""
    for path, branch in model.named_modules():
        if not isinstance(branch, Branch):
            continue
        own = own_name(path, model)
        if has_other_names(branch.sigma()):
            raise CheckpointError(
                f"σ of the branch at {printable(own)} has masks or gates of a training rule, which no plain model has; "
                "call close() of that rule, or noble_fx.truncate(model, …), and save then"
            )
        names = {f"{own}.{name}": shape for name, shape in _branch_shapes(branch).items()}
        layer = model.get_submodule(path.rpartition(".")[0])
        if branch.site is not None and not branch.site.is_block and not isinstance(layer, Structured):
            names |= dict.fromkeys([_weight_name(own, branch)])
        for name, shape in names.items():
            found = tensors.get(tied.get(name, name))
            if found is None or (shape is not None and tuple(found.shape) != shape):
                has = f"is {list(found.shape)}, not {list(shape or ())}" if found is not None else "is not in its state"
                raise CheckpointError(
                    f"{printable(name)} {has}, so no plain model could be filled from the file: was it parametrized, "
                    "pruned, normed or replaced after transform? Undo that first, with "
                    "torch.nn.utils.parametrize.remove_parametrizations(module, name), "
                    "torch.nn.utils.prune.remove(module, name) or torch.nn.utils.remove_weight_norm(module)"
                )


def _branch_shapes(branch: Branch) -> dict[str, tuple[int, ...] | None]:
    made = type(branch).on_meta(branch.in_features, branch.out_features, branch.rank, branch.config).state_dict()
    own = {
        name: value for name, value in made.items() if isinstance(value, Tensor) and not name.startswith("adapters.")
    }
    beside = {name: value for name, value in branch.named_parameters() if name.startswith("adapters.")}
    return {name: tuple(value.shape) for name, value in {**own, **beside}.items()}


def _weight_name(path: str, branch: Branch) -> str:
    """The weight beside a branch, by the branch's path: `<layer>.noble`, `<owner>.noble.<parameter>[.<expert>]`."""
    owner, _, parameter = f".{path}".rpartition(".noble")
    name = parameter.split(".")[1] if parameter else "weight"
    return f"{owner}.{name}".removeprefix(".")

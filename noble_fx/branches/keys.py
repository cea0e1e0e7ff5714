"""The keys by which graphs name a σ."""

from __future__ import annotations

import copy
import functools
import hashlib
import types
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.errors import ConfigError

_TEMPLATES: dict[str, nn.Module] = {}


def activation_key(act: nn.Module, label: str) -> str:
    """The key under which `template` finds this structure again; same structure, same key, in any process."""
    key = f"{label}-{hashlib.sha256(repr(_fingerprint(act)).encode()).hexdigest()[:12]}"
    # A class that was defined again under its old name (a notebook cell run twice) must not get the old one's code.
    while key in _TEMPLATES and _classes(_TEMPLATES[key]) != _classes(act):
        key += "+"
    if key not in _TEMPLATES:
        _TEMPLATES[key] = copy.deepcopy(act).to("meta")
    return key


def template(key: str) -> nn.Module:
    """The activation of this key, on the meta device; its tensors are only names and shapes."""
    if key not in _TEMPLATES:
        raise ConfigError(
            f"activation {key!r} is not known in this process; build or load the model that uses it with noble_fx first"
        )
    return _TEMPLATES[key]


def _classes(act: nn.Module) -> list[type]:
    return [type(module) for module in act.modules()]


def _fingerprint(act: nn.Module) -> list[Any]:
    held = ("_parameters", "_buffers", "_modules", "training")
    return [
        (
            path,
            f"{type(module).__module__}.{type(module).__qualname__}",
            module.extra_repr(),
            sorted((k, _described(v)) for k, v in vars(module).items() if k not in held and not k.startswith("_")),
            [(n, None if p is None else tuple(p.shape)) for n, p in module._parameters.items()],
            [(n, None if b is None else tuple(b.shape)) for n, b in module._buffers.items()],
        )
        for path, module in act.named_modules()
    ]


def _described(value: Any, depth: int = 4) -> str:
    """What sets a module's attribute apart from another's, the same in any process: no addresses.

    Functions are told apart by their code and what they enclose: two lambdas share a name, not what they do.
    """
    if value is None or isinstance(value, str | int | float | complex | bool | bytes | torch.dtype | torch.device):
        return repr(value)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        return f"{name}{tuple(value.shape)}"
    if depth == 0:
        return name
    inner = functools.partial(_described, depth=depth - 1)
    if isinstance(value, dict):
        return f"{name}{sorted((inner(k), inner(v)) for k, v in value.items())}"
    if isinstance(value, list | tuple):
        return f"{name}{[inner(one) for one in value]}"
    if isinstance(value, set | frozenset):
        return f"{name}{sorted(inner(one) for one in value)}"
    if isinstance(value, types.CodeType):
        return f"{value.co_code.hex()} {value.co_names} {[inner(one) for one in value.co_consts]}"
    if isinstance(value, types.FunctionType):
        cells = [inner(cell.cell_contents) for cell in value.__closure__ or ()]
        code, defaults = _described(value.__code__, depth), inner([value.__defaults__, value.__kwdefaults__])
        return f"{value.__module__}.{value.__qualname__} {code} {defaults} {cells}"
    if isinstance(value, functools.partial):
        return f"{name}{inner([value.func, value.args, value.keywords])}"
    if isinstance(value, types.MethodType):
        return f"{name}{inner([value.__func__, value.__self__])}"
    called = f" {value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else ""
    return f"{name}{called}{inner(vars(value)) if hasattr(value, '__dict__') and not isinstance(value, type) else ''}"

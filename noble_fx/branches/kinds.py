"""The kinds of branch by name, and the way to add one's own."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from noble_fx.branches.base import ACTIONS, Branch, Rate
from noble_fx.branches.lora import LoraBranch
from noble_fx.branches.noble import NobleBranch
from noble_fx.config import ADAPTER_SETTINGS, NobleConfig
from noble_fx.errors import ConfigError, nearest, shown

_OWN: tuple[type[Branch], ...] = (NobleBranch, LoraBranch)
_KINDS: dict[str, type[Branch]] = {kind.kind: kind for kind in _OWN}
_BUILT_IN = tuple(_KINDS)


def branch_names() -> tuple[str, ...]:
    """Every name that `branch=` takes, registered ones last."""
    return tuple(_KINDS)


def register_branch(name: str, kind: type[Branch]) -> None:
    """Make `branch=name` build `kind`, so that it can be saved and loaded; a second call replaces the first.

    Raises `ConfigError` for a name that cannot be, and for a class that lacks a part of `noble_fx.Branch`.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"{shown(name)} is not a name for a kind of branch; use letters, digits and underscores")
    if name in _BUILT_IN:
        raise ConfigError(f"{name!r} is already a kind of branch of noble_fx; choose another name")
    _check_interface(kind)
    _KINDS[name] = kind


def branch_class(config: NobleConfig) -> type[Branch]:
    """The kind that a config asks for; raises `ConfigError` for an unknown name and a class that is no branch."""
    if isinstance(config.branch, str):
        if config.branch not in _KINDS:
            known = branch_names()
            raise ConfigError(
                f"branch={config.branch!r} is unknown{nearest(config.branch, known)}; known: {', '.join(known)}. "
                "A kind of your own is made known with noble_fx.register_branch(name, class)"
            )
        return _KINDS[config.branch]
    _check_interface(config.branch)
    return config.branch


def check_branch(config: NobleConfig) -> None:
    """Refuse, before a model is looked at, a kind or settings that no layer could have; raises `ConfigError`."""
    kind = branch_class(config)
    for name in ADAPTER_SETTINGS:
        if getattr(config, name) is not None and name not in kind.settings:
            raise ConfigError(f"{name}={shown(getattr(config, name))} is for branch='lora', not {kind.kind!r}")
    kind.check(config)
    if kind not in _OWN:
        _try_on_meta(kind, config)


def _check_interface(kind: Any) -> None:
    name = getattr(kind, "__qualname__", repr(kind))
    if not isinstance(kind, type) or not issubclass(kind, Branch):
        raise ConfigError(f"branch={name} must be a name or a subclass of noble_fx.Branch")
    missing = ["forward(x, rows=None)"] if not _overrides(kind, "forward") else []
    missing += ["reset_parameters()"] if not hasattr(kind, "reset_parameters") else []
    if not missing and "rows" not in inspect.signature(kind.forward).parameters:
        missing = ["forward's argument rows, a slice of N or None"]
    if missing:
        raise ConfigError(f"branch {name} lacks {' and '.join(missing)}, which noble_fx.Branch asks of every kind")
    if kind.action not in ACTIONS:
        raise ConfigError(f"branch {name} has action={kind.action!r}; use {' or '.join(map(repr, ACTIONS))}")


def _overrides(kind: type[Branch], method: str) -> bool:
    return getattr(kind, method) is not getattr(Branch, method)


def _try_on_meta(kind: type[Branch], config: NobleConfig) -> None:
    """Build one and run it without values: a constructor or a shape that is wrong shows here, not in the model."""
    try:
        branch = kind.on_meta(8, 6, 2, config)
        with torch.no_grad():
            outputs = [branch(torch.empty(3, 8, device="meta"), rows) for rows in (None, slice(1, 4))]
        roles = list(branch.parameter_roles())
    except Exception as error:
        raise ConfigError(
            f"branch {kind.__qualname__} fails for K = 8, N = 6, rank 2: {type(error).__name__}: {error}"
        ) from error
    shapes = [list(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}" for y in outputs]
    if shapes != [[3, 6], [3, 3]]:
        raise ConfigError(
            f"branch {kind.__qualname__} maps [3, 8] to {shapes[0]}, and its rows 1:4 to {shapes[1]}; "
            "for K = 8 and N = 6 it must give [3, 6] and [3, 3]"
        )
    _check_roles(kind, branch, roles)


def _check_roles(kind: type[Branch], branch: Branch, roles: list[Any]) -> None:
    """A parameter that no role names would be in no optimizer group, and never learn."""
    for entry in roles:
        if not isinstance(entry, tuple) or len(entry) != 3 or not isinstance(entry[2], Rate):
            raise ConfigError(
                f"branch {kind.__qualname__}.parameter_roles yields {type(entry).__name__} entries that are no "
                "(role, parameter, Rate(lr, decay))"
            )
    named = {id(parameter) for _, parameter, _ in roles}
    missing = [name for name, parameter in branch.named_parameters() if id(parameter) not in named]
    if missing:
        raise ConfigError(
            f"branch {kind.__qualname__}.parameter_roles leaves out {', '.join(map(repr, missing))}, which would be in "
            "no optimizer group; yield every parameter"
        )

"""The captures by name, in their order, and the captured models inside a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from noble_fx.captures.base import Capture
from noble_fx.captures.export import Export
from noble_fx.captures.fx import Fx
from noble_fx.captures.modules import Modules
from noble_fx.config import CAPTURES
from noble_fx.errors import ConfigError

AUTO = ("modules",)  # what capture="auto" asks, in this order: the user's own tree, always
_TABLE: dict[str, Capture] = {"modules": Modules(), "fx": Fx(), "export": Export()}


def register_capture(name: str, capture: type[Capture]) -> None:
    """Make `transform(..., capture=name)` mean this class of captures; a name of the user's own may be given anew.

    Raises `ConfigError` for a name that is this project's, and where the class lacks a part of `Capture`.
    """
    if name in ("auto", "modules", "fx", "export"):
        raise ConfigError(f"capture {name!r} is noble_fx's own; register yours under another name")
    shown = getattr(capture, "__qualname__", repr(capture))
    if not (isinstance(capture, type) and issubclass(capture, Capture)):
        raise ConfigError(f"{shown} is no capture: derive a class from noble_fx.captures.Capture")
    if missing := sorted(getattr(capture, "__abstractmethods__", ())):
        raise ConfigError(f"{shown} is no capture yet: it lacks {' and '.join(missing)}")
    _TABLE[name] = capture()
    if name not in CAPTURES:
        CAPTURES.append(name)


def asked(name: str) -> Iterator[tuple[str, Capture]]:
    """The captures that `capture=name` asks, in order."""
    for each in AUTO if name == "auto" else (name,):
        if each not in _TABLE:
            raise ConfigError(
                f"capture={each!r} is not registered in this process; call noble_fx.captures.register_capture"
            )
        yield each, _TABLE[each]


def capture_of(module: nn.Module) -> Capture | None:
    """The capture whose graphs this very module runs, or None where its own forward runs."""
    return next((capture for capture in _TABLE.values() if capture.holds(module)), None)


def captured(model: nn.Module) -> Iterator[tuple[Capture, Any]]:
    """Every captured module inside `model`, itself included, with its capture."""
    for module in list(model.modules()):
        if (capture := capture_of(module)) is not None:
            yield capture, module

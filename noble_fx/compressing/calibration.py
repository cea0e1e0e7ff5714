"""What a model is run on to be compressed: one batch, or any number of them, in whatever a loader gives."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.errors import ConfigError, NobleError, printable, shown

_FORMS = (
    "a tensor, a tuple of positional inputs, a dictionary of named ones, or a list, loader or generator of any of these"
)


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of the model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str  # as a message says it


class Calibration:
    """Batches in order, once or (`repeatable`) as often as needed; raises `ConfigError` for what holds none."""

    def __init__(self, given: Any):
        one = isinstance(given, Tensor | tuple | Mapping)
        if not one and (isinstance(given, str | bytes | nn.Module) or not isinstance(given, Iterable)):
            raise ConfigError(f"calibration={shown(given)} must be {_FORMS}")
        self._given: Any = [given] if one else given
        self._one = one

    def repeatable(self) -> Calibration:
        """The same batches, held where they could be had only once."""
        if isinstance(self._given, Iterator):
            self._given = list(self._given)
        return self

    def first(self) -> Batch:
        """The first batch, which is not taken from those that follow."""
        given = self._given
        if isinstance(given, Iterator):
            taken = list(itertools.islice(given, 1))
            self._given = itertools.chain(taken, given)
            return next(iter(Calibration(taken)))
        return next(iter(self))

    def __iter__(self) -> Iterator[Batch]:
        found = False
        for at, given in enumerate(self._given):
            found = True
            yield _batch(given, "calibration" if self._one else f"calibration batch {at}")
        if not found:
            raise ConfigError(f"calibration holds no batch; give {_FORMS}")

    def __len__(self) -> int:
        """How many batches there are, 0 where nobody knows."""
        try:
            return len(self._given)
        except TypeError:
            return 0


def _batch(given: Any, name: str) -> Batch:
    if isinstance(given, Tensor):
        return Batch((given,), {}, name)
    if isinstance(given, tuple | list):
        return Batch(tuple(given), {}, name)
    if isinstance(given, Mapping):
        return Batch((), given, name)
    raise ConfigError(f"{name} is {shown(given)}, which is no input of a model; give {_FORMS}")


def run(model: nn.Module, batch: Batch) -> None:
    """Run the model on a batch; raises `ConfigError` with the argument that does not fit, where it cannot."""
    try:
        model(*batch.args, **batch.kwargs)
    except (NobleError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"the model cannot run on {batch.name}: {misfit(model, batch) or _said(error)}; give what its forward "
            "takes, such as ((x,) for x, label in loader)"
        ) from error


def misfit(model: nn.Module, batch: Batch) -> str:
    """Which argument of `forward` is missing or unknown; "" where all fit."""
    try:
        inspect.signature(model.forward).bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        return f"{printable(error)} of {type(model).__name__}.forward"
    except ValueError:  # a forward that says nothing of its arguments
        pass
    return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(error)}"

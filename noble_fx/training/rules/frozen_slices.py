"""Rows or columns of parameters that a step leaves as they are, to the bit, whatever the optimizer does.

A gradient of zero does not freeze: AdamW's decay shrinks the entry, and its momentum coasts on. So the slices are
remembered before the step and put back after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noble_fx.distributed import is_distributed
from noble_fx.errors import CaptureError, ConfigError, nearest, shown
from noble_fx.training.rules.base import Rule, named_of
from noble_fx.wrappers import own_name


class FrozenSlices(Rule):
    """Holds what `hold` names until `release`; the rest of a parameter learns on.

    Moments of the optimizer go on counting the gradients of what is held.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {own_name(name, model): parameter for name, parameter in named_of(model).items()}
        self._held: dict[tuple[str, int], Tensor] = {}  # by name and dimension, the indices
        self._values: list[tuple[nn.Parameter, int, Tensor, Tensor]] = []

    def hold(self, name: str, dim: int, indices: Sequence[int] | slice | Tensor) -> None:
        """Freeze those indices of the parameter `name` along `dim` (0: rows), beside what is held of it already.

        Raises `ConfigError` for a name or an index that is not there, and `CaptureError` for a shard.
        """
        parameter = self._parameters.get(name)
        if parameter is None:
            raise ConfigError(f"the model has no parameter {name!r}{nearest(name, self._parameters)}")
        if is_distributed(parameter):
            raise CaptureError(f"{name!r} is spread over ranks; hold slices of a plain model")
        if isinstance(dim, bool) or not isinstance(dim, int) or not 0 <= dim < parameter.ndim:
            raise ConfigError(f"dim={shown(dim)} is no dimension of {name!r}, which has {parameter.ndim}")
        new = _indices(name, indices, parameter.shape[dim])
        held = self._held.get((name, dim), new)
        self._held[name, dim] = torch.unique(torch.cat([held, new]))

    def release(self, name: str | None = None) -> None:
        """Let the parameter `name` learn whole again, or all of them."""
        if name is not None and name not in self._parameters:
            raise ConfigError(f"the model has no parameter {name!r}{nearest(name, self._parameters)}")
        self._held = {key: held for key, held in self._held.items() if name is not None and key[0] != name}

    @property
    def held(self) -> dict[tuple[str, int], list[int]]:
        """What is held: indices by name and dimension."""
        return {key: indices.tolist() for key, indices in self._held.items()}

    def before_step(self) -> None:
        """Remember the slices."""
        self._values = []
        for (name, dim), held in self._held.items():
            parameter = self._parameters[name]
            at = held.to(parameter.device)
            self._values.append((parameter, dim, at, parameter.detach().index_select(dim, at)))

    def after_step(self) -> None:
        """Put them back."""
        with torch.no_grad():
            for parameter, dim, at, values in self._values:
                parameter.index_copy_(dim, at, values)
        self._values = []


def _indices(name: str, indices: Sequence[int] | slice | Tensor, size: int) -> Tensor:
    """As a tensor of whole numbers within `size`; raises `ConfigError`."""
    if isinstance(indices, slice):
        return torch.arange(size)[indices]
    found = torch.as_tensor(indices)
    if found.dtype == torch.bool and found.shape == (size,):
        return found.nonzero().squeeze(1).cpu()
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ConfigError(f"indices={shown(indices)} must be whole numbers in a row, a slice or a mask of {size}")
    if len(found) and not (int(found.min()) >= 0 and int(found.max()) < size):
        raise ConfigError(f"indices of {name!r} must be from 0 to {size - 1}, not {shown(found.tolist())}")
    return found.long().cpu()

"""In which order a model calls its layers, and which of them read one tensor: seen in a first run.

Layers that read the same tensor (q, k and v; gate and up) share what is summed over it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.compressing.calibration import Batch, run
from noble_fx.compressing.places import Place
from noble_fx.torch_versions import uncompiled

See = Callable[[Place, Tensor], None]


@dataclass(frozen=True)
class Order:
    """Layers by name, those together that read one tensor, in the order of their first calls."""

    groups: tuple[tuple[str, ...], ...]
    once: bool  # whether each of them was called exactly once

    @property
    def names(self) -> list[str]:
        """The layers that were called."""
        return [name for group in self.groups for name in group]


class Input:
    """What a layer read: a tensor with the values that it had then, which are not kept from going."""

    def __init__(self, x: Tensor):
        self._x, self._version = weakref.ref(x), _version(x)

    def same(self, x: Tensor) -> bool:
        """Whether `x` is that tensor, unchanged since."""
        return self._x() is x and self._version == _version(x)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


@contextmanager
def seen(places: Sequence[Place], see: See) -> Iterator[None]:
    """Inside, `see` is told of the input of each call of these layers, before the layer runs."""

    def told(place: Place) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(place, args[0] if args else next(iter(kwargs.values())))

        return hook

    handles = [place.layer.register_forward_pre_hook(told(place), with_kwargs=True) for place in places]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_run(model: nn.Module, places: Sequence[Place], batch: Batch) -> Order:
    """Run the model once, and see; raises `ConfigError` where it cannot run."""
    groups: list[list[str]] = []
    calls: Counter[str] = Counter()
    readers: dict[int, tuple[Input, list[str]]] = {}

    def see(place: Place, x: Tensor) -> None:
        calls[place.name] += 1
        if calls[place.name] > 1:
            return
        known = readers.get(id(x))
        if known is None or not known[0].same(x):
            groups.append([])
            readers[id(x)] = known = (Input(x), groups[-1])
        known[1].append(place.name)

    with torch.no_grad(), uncompiled(), seen(places, see):
        run(model, batch)
    return Order(tuple(map(tuple, groups)), all(count == 1 for count in calls.values()))

"""What a site tells of each of its calls, and what stands in the place of a method to hear of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noble_fx.errors import ConfigError
from noble_fx.exporting import leaves_this_process
from noble_fx.torch_state import in_backward, in_transform, is_fake, outside_modes

Stages = Callable[[], Iterable[tuple[str, Tensor]]]


class Call(NamedTuple):
    """One call of a site: y is its result, with the branch."""

    site: str
    x: Tensor
    y: Tensor
    added: Callable[[], list[Tensor]]  # what the branch added to it, in one part or more
    stages: Stages  # everything on the way from x to y, by name, computed again


See = Callable[[Call], None]


def tell(see: See, call: Call) -> None:
    """Tell of one call, beside what is being computed: no gradient, no dispatch mode sees it."""
    if isinstance(call.y, Tensor) and isinstance(call.x, Tensor) and not is_fake(call.y) and not is_fake(call.x):
        with torch.no_grad(), outside_modes():
            see(call)


def unseen() -> bool:
    """Whether what runs now is no forward of the program's own: a checkpoint's second one, a transform, an export."""
    return in_backward() or in_transform() or leaves_this_process()


class Observer(ABC):
    """Stands in the place of the method `name` of a module, on the object."""

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name = module, name
        self.run = getattr(module, name)
        self.__wrapped__ = self.run  # so that its signature is seen
        self.before = vars(module).get(name)

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the method gives, told of on the way."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigError("the model is being watched, and a copy would tell of it for good; copy it outside")

    def put(self) -> None:
        vars(self.module)[self.name] = self

    def take_away(self) -> None:
        if vars(self.module).get(self.name) is self:  # else somebody put another one there since
            del vars(self.module)[self.name]
            if self.before is not None:
                vars(self.module)[self.name] = self.before


@contextmanager
def in_place(observers: Iterable[Observer]) -> Iterator[None]:
    """Inside, these stand where they belong."""
    observers = list(observers)
    try:
        for each in observers:
            each.put()
        yield
    finally:
        for each in reversed(observers):
            each.take_away()

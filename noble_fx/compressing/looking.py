"""A model that is run only to be looked at is then as it was, whatever was raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from noble_fx.attach.restore import Before
from noble_fx.random_states import random_states_kept


@contextmanager
def looked_at(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in eval mode and may be run; afterwards it is what it was."""
    before = Before(model)
    before.keep(model.buffers())
    try:
        with random_states_kept():
            model.eval()
            yield
    finally:
        before.put_back()

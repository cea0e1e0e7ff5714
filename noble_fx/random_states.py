"""What is drawn while the user's Python is looked at leaves the random generators where they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def random_states_kept() -> Iterator[Callable[[], str]]:
    """Inside, anything may be drawn; afterwards torch, Python and NumPy draw on from where they were.

    Yields a function that names the generator of Python's world that has been drawn from, or "".
    """
    numpy: Any = sys.modules.get("numpy.random")
    python, arrays = random.getstate(), numpy.get_state() if numpy else None

    def drawn() -> str:
        if random.getstate() != python:
            return "Python's"
        return "NumPy's" if numpy and str(numpy.get_state()) != str(arrays) else ""

    try:
        with torch.random.fork_rng(_devices()):
            yield drawn
    finally:
        random.setstate(python)
        if numpy:
            numpy.set_state(arrays)


@contextmanager
def undisturbed() -> Iterator[Callable[[], str]]:
    """`random_states_kept`, and inside, what is drawn from torch's generators is the same each time."""
    with random_states_kept() as drawn:
        seed_cpu(0)
        for device in _devices():
            torch.cuda.default_generators[device].manual_seed(0)
        yield drawn


def seed_cpu(seed: int) -> None:
    """Seed the CPU's generator alone: `torch.manual_seed` seeds those of every GPU as well, used or not."""
    torch.default_generator.manual_seed(seed)


def _devices() -> range:
    """The GPUs whose generators exist."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)

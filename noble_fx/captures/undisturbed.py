"""Running the user's Python to look at it, without a trace in what it draws afterwards."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def undisturbed() -> Iterator[Callable[[], str]]:
    """Inside, random draws of torch's are the same each time; afterwards all generators are where they were.

    Yields a function that names the generator of Python's world that has been drawn from, or "".
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy: Any = sys.modules.get("numpy.random")
    python, arrays = random.getstate(), numpy.get_state() if numpy else None

    def drawn() -> str:
        if random.getstate() != python:
            return "Python's"
        return "NumPy's" if numpy and str(numpy.get_state()) != str(arrays) else ""

    try:
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(0)
            for device in devices:  # `torch.manual_seed` would seed devices that nobody has used yet
                torch.cuda.default_generators[device].manual_seed(0)
            yield drawn
    finally:
        random.setstate(python)
        if numpy:
            numpy.set_state(arrays)

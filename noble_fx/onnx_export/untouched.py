"""What an export leaves as it was beside the model: the states of the random generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def random_states_kept(model: nn.Module) -> Iterator[None]:
    """Inside, a model may draw random numbers; afterwards torch, Python and NumPy draw on from where they were."""
    devices = {tensor.get_device() for tensor in [*model.parameters(), *model.buffers()] if tensor.is_cuda}
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)

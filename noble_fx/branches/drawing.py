"""The random state in which one layer is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from noble_fx.config import NobleConfig
from noble_fx.random_states import seed_cpu


def has_values(tensor: Tensor) -> bool:
    """Whether there is anything to draw: on the meta device torch takes a millisecond to do nothing."""
    return not tensor.is_meta


@contextmanager
def drawing(config: NobleConfig, fqn: str) -> Iterator[None]:
    """Random state for one layer: with a seed it depends on the layer's name alone, not on order or selection.

    Inside, tensors are made on the CPU, whatever the default device: a seed is the same branch everywhere.
    """
    if config.seed is None:
        with torch.device("cpu"):
            yield
        return
    digest = hashlib.sha256(f"{config.seed}:{fqn}".encode()).digest()
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        seed_cpu(int.from_bytes(digest[:7], "big"))
        yield

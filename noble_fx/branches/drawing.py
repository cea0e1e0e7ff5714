"""The random state in which one layer is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from noble_fx.config import NobleConfig


@contextmanager
def drawing(config: NobleConfig, fqn: str) -> Iterator[None]:
    """Random state for one layer: with a seed it depends on the layer's name alone, not on order or selection."""
    if config.seed is None:
        yield
        return
    digest = hashlib.sha256(f"{config.seed}:{fqn}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield

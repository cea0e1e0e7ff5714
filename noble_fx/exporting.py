"""Who is exporting: a program that may leave this process, or one that this package makes for itself.

A node `noble_fx::linear` names its σ by a key, and a key is known where the model is. What a user exports is saved,
packaged and run elsewhere, so there a layer is plain aten; the programs that this package exports to look at, to run in
the model's place or to write as ONNX keep the node.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from noble_fx.torch_state import is_exporting

_OWN = threading.local()


@contextmanager
def own_export() -> Iterator[None]:
    """Inside, on this thread, an export is this package's: fused sites stay one node."""
    before = getattr(_OWN, "running", False)
    _OWN.running = True
    try:
        yield
    finally:
        _OWN.running = before


def leaves_this_process() -> bool:
    """Whether a user's `torch.export` is tracing, whose program must run where no key is known."""
    if not is_exporting():
        return False
    # Own exports are non-strict, so Dynamo never comes here for one; it would have no rule for a thread's own values.
    return torch.compiler.is_dynamo_compiling() or not getattr(_OWN, "running", False)

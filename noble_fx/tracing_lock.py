"""One trace at a time in this process: fx, `torch.export` and `torch.onnx` change what all threads see."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _State:
    def __init__(self) -> None:
        self.lock = threading.RLock()


_state = _State()
# A child that was forked while another thread traced would wait for that thread, which it does not have.
os.register_at_fork(after_in_child=_state.__init__)  # type: ignore[misc]


@contextmanager
def tracing() -> Iterator[None]:
    """Inside, no other thread traces; within itself it does not wait."""
    with _state.lock:
        yield

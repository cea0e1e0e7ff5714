"""One trace at a time, and none that other threads can see.

fx, `make_fx` and `torch.export` put functions of their own into `nn.Module` while they trace, and take them out again.
So two traces at once would leave a stranger's functions behind, and a model that another thread runs meanwhile would be
taken for a part of the one that is traced.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from noble_fx.torch_versions import tracers_of_this_thread

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


class _State:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread = threading.local()  # `inside`: whether it is this thread's turn


_state = _State()
# A child that was forked while another thread traced would wait for that thread, which it does not have.
os.register_at_fork(after_in_child=_state.__init__)  # type: ignore[misc]


@contextmanager
def tracing() -> Iterator[None]:
    """Inside, no other thread traces, and what tracing does to `nn.Module` is done for this thread alone."""
    if getattr(_state.thread, "inside", False):
        yield
        return
    with _state.lock, _turn(), tracers_of_this_thread():
        yield


def as_part(call: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
    """`call` for a helper thread that this one waits for: where it is this thread's turn, it is the helper's too."""
    if not getattr(_state.thread, "inside", False):
        return call

    def run(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        with _turn():
            return call(*args, **kwargs)

    return run


@contextmanager
def _turn() -> Iterator[None]:
    _state.thread.inside = True
    try:
        yield
    finally:
        _state.thread.inside = False

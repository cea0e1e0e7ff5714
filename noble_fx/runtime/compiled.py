"""What Triton compiled, started without its Python launcher: its own compiled launcher is called with what that one
would call it with. This is the one place that knows how.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def can_start(compiled: Any) -> bool:
    """Whether a launch gave a compiled kernel that can be started again; the interpreter gives none."""
    return all(hasattr(compiled, name) for name in ("run", "function", "packed_metadata"))


def starter(compiled: Any, programs: int) -> Callable[[int, tuple[int, ...]], None]:
    """A function of a stream and the kernel's arguments, addresses as numbers, that starts so many programs."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata

    def start(stream: int, arguments: tuple[int, ...]) -> None:
        run(programs, 1, 1, stream, function, metadata, None, None, None, *arguments)

    return start


def stream_of(device: torch.device) -> int | None:
    """The current stream of the device, or None where that is not the current device, to which Triton launches."""
    driver = _driver()
    index: int = driver.get_current_device()
    return driver.get_current_stream(index) if index == device.index else None


def is_observed() -> bool:
    """Whether a profiler has hooks on Triton's launches."""
    runtime = _runtime()
    return bool(_functions(runtime.launch_enter_hook) or _functions(runtime.launch_exit_hook))


def _functions(hook: Any) -> Any:
    return getattr(hook, "calls", hook)  # a chain of functions, or one, or None


@functools.cache
def _driver() -> Any:
    from triton.runtime import driver

    return driver.active


@functools.cache
def _runtime() -> Any:
    from triton import knobs

    return knobs.runtime

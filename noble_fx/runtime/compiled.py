"""What Triton compiled, started without its Python launcher: its own compiled launcher is called with what that one
would call it with. This is the one place that knows how.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import torch


def can_start(compiled: Any) -> bool:
    """Whether a launch gave a compiled kernel that can be started again; the interpreter gives none."""
    return all(hasattr(compiled, name) for name in ("run", "function", "packed_metadata"))


def starter(compiled: Any, programs: int, descriptors: bool = False) -> Callable[[int, tuple[int, ...]], None]:
    """A function of a stream and the kernel's arguments, addresses as numbers, that starts so many programs.

    `descriptors`: the kernel needs memory for them.
    """
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    if descriptors:
        run = lent_memory(run)

    def start(stream: int, arguments: tuple[int, ...]) -> None:
        run(programs, 1, 1, stream, function, metadata, None, None, None, *arguments)

    return start


def lent_memory(launch: Callable[..., Any]) -> Callable[..., Any]:
    """The launch with memory for what a kernel writes beside its results; Triton asks for it in the launching context,
    which differs from thread to thread, and the user's own answer is left as it is."""
    import triton

    def lend(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int8, device="cuda")

    def launched(*arguments: Any, **options: Any) -> Any:
        context = contextvars.copy_context()
        context.run(triton.set_allocator, lend)
        return context.run(launch, *arguments, **options)

    return launched


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

"""What an activation does, operator by operator, as text: two that give the same text compute the same.

    %0 = h, %1 … its tensors          aten.mul.Tensor(%1, %0) -> %3          aten.cos.default(%3) -> %4          …

The activation runs once, forward and backward, on numbers of no meaning, and every operator that PyTorch dispatches is
written down with its arguments. Tensors go by the order in which their memory first appears; one that was there before
(a captured constant) goes by its value. Nothing is read from attributes, names of classes or code.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noble_fx.branches.observed import quiet
from noble_fx.random_states import random_states_kept
from noble_fx.torch_versions import TorchDispatchMode

ROWS = 6
Result = TypeVar("Result")


def elsewhere(call: Callable[[], Result]) -> Result:
    """`call()` in a thread of its own, with the random numbers of the caller left where they are.

    Dispatch state (grad mode, autocast, inference mode, fake mode, default device) belongs to a thread: a new one has
    none of the caller's, so what is traced in the middle of somebody's backward is what is traced anywhere else.
    """

    def quietly() -> Result:
        with random_states_kept():
            return call()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(quietly).result()


def with_tensors(act: nn.Module, other: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of σ that holds `other(t)` for each of its parameters and buffers t, whose numbers are not copied."""
    memo: dict[int, Any] = {id(p): nn.Parameter(other(p), p.is_floating_point()) for p in act.parameters()}
    memo |= {id(b): other(b) for b in act.buffers()}
    return copy.deepcopy(act, memo)


def sampled(act: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A quiet copy of σ on the CPU, with numbers of no meaning: floating-point ones of this dtype, others 1."""
    generator = torch.Generator().manual_seed(0)

    def sample(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.rand(tensor.shape, generator=generator, dtype=dtype) + 0.5
        return torch.ones(tensor.shape, dtype=tensor.dtype)

    return quiet(with_tensors(act, sample))


def record(act: nn.Module, rank: int, dtype: torch.dtype, backward: bool = True) -> str:
    """What `act`, whose tensors are of this dtype, does with h [rows, rank], as it is now: in train or in eval mode."""
    generator = torch.Generator().manual_seed(1)
    h, dt = (torch.rand(ROWS, rank, generator=generator, dtype=dtype) + 0.5 for _ in range(2))
    inputs = [h.requires_grad_(), *(p for p in act.parameters() if p.requires_grad)]
    recorder = _Recorder([h, *act.parameters(), *act.buffers(), dt])
    with recorder, torch.enable_grad():
        t = act(h.clone())  # not a leaf, so that it may be changed in place
        recorder.lines.append(f"return {recorder.text(t)}")
        if backward and t.requires_grad:
            gradients = torch.autograd.grad(t, inputs, dt, allow_unused=True)
            recorder.lines.append(f"return {recorder.text(gradients)}")
    return "\n".join(recorder.lines)


def asks_for_grad_mode(act: nn.Module, rank: int, dtype: torch.dtype) -> bool:
    """Whether `act`, whose tensors are of this dtype, does something else with h [rows, rank] under `no_grad`."""
    h, lines = torch.ones(ROWS, rank, dtype=dtype), []
    for grad in (True, False):
        recorder = _Recorder([h, *act.parameters(), *act.buffers()])
        with recorder, torch.set_grad_enabled(grad):
            act.requires_grad_(False)(h.clone())  # what is kept for a backward would be recorded too
        lines.append(recorder.lines)
    return lines[0] != lines[1]


class _Recorder(TorchDispatchMode):
    """Writes down every operator; `known` tensors are what it may read."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.memory: dict[int, int] = {}  # the number of each storage
        self.kept: list[Tensor] = []  # no storage is freed meanwhile, so that none takes another's place
        self.lines.append(" ".join(self._number(tensor) for tensor in known))

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = f"{operator}{self.text(args)}{self.text(kwargs)}"
        result = operator(*args, **kwargs)
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self._number(tensor)
        self.lines.append(f"{call} -> {self.text(result)}")
        return result

    def text(self, value: Any) -> str:
        if isinstance(value, Tensor):
            if value.untyped_storage()._cdata in self.memory:
                return self._number(value)
            return f"{self._number(value)}={_value(value)}"
        if isinstance(value, list | tuple):
            return f"({', '.join(map(self.text, value))})"
        if isinstance(value, dict):
            return f"({', '.join(f'{name}={self.text(item)}' for name, item in value.items())})"
        plain = value is None or isinstance(value, bool | int | float | complex | str)
        described = plain or isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format)
        return repr(value) if described else type(value).__qualname__

    def _number(self, tensor: Tensor) -> str:
        self.kept.append(tensor)
        number = self.memory.setdefault(tensor.untyped_storage()._cdata, len(self.memory))
        return f"%{number}:{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}+{tensor.storage_offset()}"


def _value(tensor: Tensor) -> str:
    """The numbers of a tensor that nobody handed in, in a few letters."""
    numbers = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]

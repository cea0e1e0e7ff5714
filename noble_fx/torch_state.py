"""What torch is doing at this moment: which modes, transforms, tracers and casts are on, asked of its private parts.

`torch_versions.py` has the rest of what this package uses of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import _disable_current_modes

# What the operator takes: plain tensors, and those that PyTorch's own tracers put in their place. Any other class has
# a say of its own about what is done with it.
PLAIN_TENSORS = frozenset((Tensor, nn.Parameter, FakeTensor, FunctionalTensor))


def in_transform() -> bool:
    """Whether functions are being transformed (torch.func, forward-mode AD, a TorchScript trace), rather than run."""
    return in_functorch() or in_forward_ad() or torch._C._get_tracing_state() is not None


def in_functorch() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp) is running, which has no rule for an operator with a backward
    of its own; there is no public question for it."""
    return bool(torch._C._are_functorch_transforms_active())


def in_forward_ad() -> bool:
    """Whether a level of forward-mode AD is open; there is no public question for it."""
    return int(torch.autograd.forward_ad._current_level) >= 0


def a_mode_looks_on() -> bool:
    """Whether a dispatch mode sees the operators that run: a tracer, a FLOP counter, a selective checkpoint."""
    return bool(torch._C._len_torch_dispatch_stack())


def nothing_interposes(x: Any) -> bool:
    """Whether an operator on `x` would be run as it is: no mode sees it, no autocast casts, no tracer records."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in _CONCRETE
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not autocast_is_on(x.device.type)
    )


_CONCRETE = (Tensor, nn.Parameter)


def layout_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """A function that says whether as many tensors have these ones' classes, dtypes, devices, sizes and strides.

    It is what Dynamo guards its graphs with, in C++: a microsecond for ten tensors, where asking each takes eight.
    """
    from torch._C._dynamo.guards import TensorGuards

    sizes: Any = [list(tensor.shape) for tensor in tensors]  # which its stub takes for one list
    strides: Any = [list(tensor.stride()) for tensor in tensors]
    check: Callable[..., bool] = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    return check


def in_backward() -> bool:
    """Whether this thread runs a backward: a forward in it is an activation checkpoint's second one."""
    return bool(torch._C._current_graph_task_id() != -1)


def outside_modes() -> AbstractContextManager[Any]:
    """Inside, no dispatch mode sees what is computed: a FLOP counter, a selective checkpoint that counts operators."""
    return _disable_current_modes()


def is_fake(tensor: Any) -> bool:
    """Whether it is a tensor without values, of a tracer's or of the meta device."""
    return isinstance(tensor, FakeTensor | FunctionalTensor) or tensor.is_meta


def below_views() -> AbstractContextManager[None]:
    """Inside, an operator's autograd rule calls the operator without coming back to itself, and no view is noted."""
    return torch._C._AutoDispatchBelowADInplaceOrView()


# Dynamo of torch 2.11 cannot ask torch for it.
_HAS_AUTOCAST = {device: torch.amp.is_autocast_available(device) for device in ("cpu", "cuda", "xpu", "mps", "meta")}


def _has_autocast(device: str) -> bool:
    known = _HAS_AUTOCAST.get(device)
    return torch.amp.is_autocast_available(device) if known is None else known


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a type of device; asking for one that has none, as meta, raises in torch."""
    return _has_autocast(device) and torch.is_autocast_enabled(device)


_NOTHING = nullcontext()


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Inside, autocast is off for a type of device, which may be one that has none."""
    return torch.autocast(device, enabled=False) if autocast_is_on(device) else _NOTHING


def is_exporting() -> bool:
    """Whether torch.export is tracing; of `torch.compiler.is_exporting` Dynamo says so in every compile (2.11)."""
    return torch.compiler._is_exporting_flag

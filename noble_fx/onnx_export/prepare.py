"""The copy that is exported and the example inputs for it: cast where asked for, in eval mode, free to change.

A copy shares the memory of plain parameters and has buffers of its own, so it costs little and leaves the model alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noble_fx.attach.attach import named_branches
from noble_fx.attach.copying import deep_copy
from noble_fx.attach.switched_off import is_off
from noble_fx.captures.table import captured
from noble_fx.captures.torch_export import first_line
from noble_fx.errors import CaptureError, ExportError
from noble_fx.fold import fold_in_place
from noble_fx.merge import merge_adapters
from noble_fx.onnx_export.merge import merge_in_place
from noble_fx.passes.history import Step


def frozen_copy(model: nn.Module, dtype: torch.dtype | None = None, shared: bool = True) -> nn.Module:
    """A copy in eval mode without gradients, its floating-point tensors in `dtype` where one is asked for.

    `shared`: parameters over the memory of the model's, where `eval()` changes none. Raises `ExportError` for a model
    that cannot be copied.
    """
    shared = shared and _switches_by_flag_alone(model)
    memo: dict[int, Any] = {id(p): _detached(p, shared) for p in model.parameters() if type(p) is nn.Parameter}
    if any(is_off(module) for _, module in captured(model)):
        raise ExportError(
            "inside noble_fx.disabled(model) a captured model is no whole; leave it, and for the base model export "
            "noble_fx.remove(copy.deepcopy(model))"
        )
    try:
        copied = deep_copy(model, memo)
    except Exception as error:
        raise ExportError(
            f"the model cannot be copied, and an export works on a copy: {type(error).__name__}: {first_line(error)}"
        ) from error
    own = named_branches(copied)
    for name, branch in named_branches(model).items():
        own[name].enabled = branch.enabled  # inside `disabled` the file is the base model's; a copy would not be
    return _cast(copied, dtype).eval().requires_grad_(False)


def _switches_by_flag_alone(model: nn.Module) -> bool:
    """Whether `eval()` sets flags and nothing else; layers that merge weights there need weights of their own."""
    return all(type(m).train is nn.Module.train and type(m).eval is nn.Module.eval for m in model.modules())


def _detached(parameter: nn.Parameter, shared: bool) -> nn.Parameter:
    """Another object over the same memory, or over memory of its own, that carries the same attributes."""
    value = parameter.detach()
    copied = nn.Parameter(value if shared else value.clone(), requires_grad=False)
    vars(copied).update(vars(parameter))
    return copied


def folded_copy(model: nn.Module, dtype: torch.dtype | None, fold: bool) -> tuple[nn.Module, list[Step]]:
    """A copy, and what was merged and folded in it; then cast, so that ω ⊙ D is rounded once."""
    copied = frozen_copy(model)
    steps = merge_adapters(copied) + merge_in_place(copied) + (fold_in_place(copied) if fold else [])
    return _cast(copied, dtype), steps


def _cast(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model with its floating-point tensors in `dtype`; complex ones, whose halves have no such form, stay."""
    if dtype is None:
        return model
    try:
        return model._apply(lambda tensor: in_dtype(tensor, dtype))
    except CaptureError as error:
        raise ExportError(str(error)) from None


def in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A floating-point tensor in `dtype`; as it is where none is asked for, and for numbers of another kind."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def given_inputs(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs as a call has them; raises `ExportError` for arguments that are no tuple and no dictionary."""
    args = (args,) if isinstance(args, Tensor) else args
    if not isinstance(args, list | tuple):
        raise ExportError(f"args must be a tuple of example inputs, not {type(args).__name__}")
    if not isinstance(kwargs, Mapping):
        raise ExportError(f"kwargs must be a dictionary of example inputs, not {type(kwargs).__name__}")
    return tuple(args), dict(kwargs)


def example_inputs(given: Any, dtype: torch.dtype | None) -> Any:
    """Copies of a call's inputs, floating-point ones in `dtype` where one is asked for.

    torch.export guards on the strides of a view, which a file does not have; so each is contiguous.
    """

    def example(tensor: Tensor) -> Tensor:
        return in_dtype(tensor, dtype).detach().clone(memory_format=torch.contiguous_format)

    return pytree.tree_map_only(Tensor, example, given)

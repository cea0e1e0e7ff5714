"""The copy that is exported and the example inputs for it: cast, in eval mode, free to be changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noble_fx.errors import CaptureError, ExportError
from noble_fx.fold import fold_in_place
from noble_fx.onnx_export.request import dtype_of
from noble_fx.passes.history import Step


def frozen_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode without gradients; its parameters are objects of its own over the model's memory."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    copied = copy.deepcopy(model, memo)
    return _cast(copied, dtype).eval().requires_grad_(False)


def folded_copy(model: nn.Module, dtype: torch.dtype, fold: bool) -> tuple[nn.Module, list[Step]]:
    """A copy, and what was folded in it; folded first, then cast, so that ω ⊙ D is rounded once."""
    copied = frozen_copy(model, dtype_of(model))
    steps = fold_in_place(copied) if fold else []
    return _cast(copied, dtype), steps


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    if dtype == dtype_of(model):
        return model
    try:
        return model.to(dtype)
    except CaptureError as error:
        raise ExportError(str(error)) from None


def example_inputs(args: Any, kwargs: Any, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of their own, floating-point ones in `dtype`.

    torch.export guards on the strides of a view, which a file does not have; so each is contiguous. Raises
    `ExportError` for arguments that are no tuple and no dictionary.
    """

    def example(tensor: Tensor) -> Tensor:
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return tensor.detach().clone(memory_format=torch.contiguous_format)

    args = (args,) if isinstance(args, Tensor) else args
    if not isinstance(args, list | tuple):
        raise ExportError(f"args must be a tuple of example inputs, not {type(args).__name__}")
    if not isinstance(kwargs, Mapping):
        raise ExportError(f"kwargs must be a dictionary of example inputs, not {type(kwargs).__name__}")
    return pytree.tree_map_only(Tensor, example, (tuple(args), dict(kwargs)))

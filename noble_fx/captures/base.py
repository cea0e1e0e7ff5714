"""What every capture shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from noble_fx.errors import CaptureError
from noble_fx.torch_versions import is_compiled


class Declined(Exception):
    """Why a capture would not be faithful; the message is the reason shown to the user."""


def check_model(model: Any) -> None:
    """Refuse what is no plain nn.Module any more (compiled, scripted)."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"noble_fx.transform takes an nn.Module, not {type(model).__name__}")
    if is_compiled(model):
        raise CaptureError("the model is already compiled; transform the plain model, then call torch.compile on it")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("the model is a ScriptModule, which cannot be rewritten; transform the Python model")


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Inside, every module's train or eval mode may change; afterwards each has its own again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

"""The model itself, out of what hands every call on to it; a sharded one has no whole weights to write."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.errors import ExportError
from noble_fx.wrappers import own_name, wrapper

# Known to compute what the one module inside does; any other is a part of the model.
_TRANSPARENT = frozenset(
    (
        *("torch.compile", "DataParallel", "DistributedDataParallel", "AveragedModel", "activation checkpointing"),
        *("ModelEma", "ModelEmaV2", "ModelEmaV3"),
    )
)
_SHARDED = ("FullyShardedDataParallel", "fully_shard", "replicate")


def plain_model(model: Any, verb: str = "export_onnx") -> nn.Module:
    """The user's own model; raises `ExportError` for what is none, and for one whose weights lie on several ranks."""
    if not isinstance(model, nn.Module):
        raise ExportError(f"noble_fx.{verb} takes an nn.Module, not {type(model).__name__}")
    while wrapper(model) in _TRANSPARENT:
        (model,) = model.children()
    if isinstance(model, torch.jit.ScriptModule):
        raise ExportError("the model is a ScriptModule, whose code cannot be traced; export the Python model")
    if sharded := _sharded_by(model):
        raise ExportError(f"{sharded}, so no rank has all of its weights; {_gather(model)}, and export that")
    return model


def _sharded_by(model: nn.Module) -> str:
    for fqn, module in model.named_modules():
        if (by := wrapper(module)) in _SHARDED:
            return f"{repr(own_name(fqn, model)) if fqn else 'the model'} is sharded by {by}"
    return next(
        (f"the parameter {fqn!r} is a DTensor" for fqn, p in model.named_parameters() if type(p).__name__ == "DTensor"),
        "",
    )


def _gather(model: nn.Module) -> str:
    """How to come to a whole model."""
    if named_branches(model):
        return "on every rank call noble_fx.save(model, folder), then noble_fx.load(plain_model, folder) on one"
    return (
        "gather them with torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True)), load them into a plain model"
    )

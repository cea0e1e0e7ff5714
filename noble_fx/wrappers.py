"""What PyTorch and others wrap around a model, and the user's own model and names inside.

A wrapper is known by its class, never by the name of a child: a user's own module may be called `module`. Classes are
compared by package and name, so nothing is imported for a model that does not come from there.
"""

from __future__ import annotations

from torch import nn

# (package, class) -> the child that is the model. Classes derived from these count as well.
_WRAPPERS = {
    ("torch", "OptimizedModule"): "_orig_mod",
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("torch", "AveragedModel"): "module",
    ("torch", "ActivationWrapper"): "_checkpoint_wrapped_module",
    ("torch", "QuantWrapper"): "module",
    ("apex", "DistributedDataParallel"): "module",
    ("deepspeed", "DeepSpeedEngine"): "module",
    ("lightning", "_FabricModule"): "_original_module",
    ("lightning_fabric", "_FabricModule"): "_original_module",
    ("opacus", "AbstractGradSampleModule"): "_module",
    ("timm", "ModelEma"): "ema",
    ("timm", "ModelEmaV2"): "module",
    ("timm", "ModelEmaV3"): "module",
}
# The module's own class is exchanged for one of these, and it keeps its names: sharded, but in nothing.
_IN_PLACE = {("torch", "FSDPModule"): "fully_shard", ("torch", "ReplicateModule"): "replicate"}
_SHOWN = {"OptimizedModule": "torch.compile", "ActivationWrapper": "activation checkpointing"}
# Where a name comes without its model, only what no user would call a module is taken for a wrapper's.
_UNMISTAKABLE = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))


def wrapper(model: nn.Module) -> str:
    """What was done around this very module, as its user calls it ("torch.compile", "DistributedDataParallel", …).

    "fully_shard" and "replicate" where the module itself was made parallel in place; "" where nothing was done.
    """
    for key in _classes(model):
        if key in _WRAPPERS:
            return _SHOWN.get(key[1], key[1])
    return next((_IN_PLACE[key] for key in _classes(model) if key in _IN_PLACE), "")


def unwrapped(model: nn.Module, until: str = "") -> nn.Module:
    """The user's own model, out of however many wrappers, or the wrapper called `until`, should it come first."""
    while (inner := model._modules.get(_child(model))) is not None and not (until and wrapper(model) == until):
        model = inner
    return model


def own_name(fqn: str, model: nn.Module | None = None) -> str:
    """The name of a module or tensor without the parts that wrappers add (`_orig_mod`, …).

    With the `model` that the name belongs to, its classes decide; without, `module` is taken for the user's own.
    """
    parts = fqn.split(".")
    if model is None:
        return ".".join(part for part in parts if part not in _UNMISTAKABLE)
    own: list[str] = []
    place: nn.Module | None = model
    for part in parts:
        while place is not None and (child := _child(place)) and child != part:
            place = place._modules.get(child)  # the wrapper leaves its part out of names itself
        if place is None or part != _child(place):
            own.append(part)
        place = place._modules.get(part) if place is not None else None
    return ".".join(own)


def _child(module: nn.Module) -> str:
    """The name of the child that this module is a wrapper of, or ""."""
    return next((_WRAPPERS[key] for key in _classes(module) if key in _WRAPPERS), "")


def _classes(module: nn.Module) -> list[tuple[str, str]]:
    return [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(module).__mro__]

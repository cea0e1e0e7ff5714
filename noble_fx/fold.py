"""`noble_fx.fold`: a copy of a model for inference, the constants of σ folded into the matrices beside it.

    cos(ω₂ ⊙ (M cos(ω₁ ⊙ (x Dᵀ + d) + φ₁) + m) + φ₂) Uᵀ   ->   cos(cos(x D'ᵀ + d') M'ᵀ + m') Uᵀ

The base weights keep their names and values (but for adapters, which are merged into W), so W stays a matrix of its
own here: in PyTorch [W; D'] gives a y that is a strided view or costs a copy of it, which eats the gain. `export_onnx`
joins W and U, where names do not matter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.attach.copying import copied_for
from noble_fx.branches.own_tensors import more_than_its_tensors
from noble_fx.captures.base import check_model
from noble_fx.captures.table import captured
from noble_fx.errors import ConfigError
from noble_fx.merge import merge_adapters
from noble_fx.passes.history import Step
from noble_fx.passes.inference.fold_branch import fold_branch
from noble_fx.training.changing.drop_channels import check_drop, drop_channels


def fold(model: nn.Module, drop: float | None = None, inputs: Any = None) -> nn.Module:
    """An inference-only copy of `model`: in eval mode, without gradients, ω and φ folded. `model` is unchanged.

    What has nothing to fold (GELU, an activation of your own) is copied as it is. With `drop`, channels go first: of
    each branch the lowest rank stays whose result is off by no more than this share of its norm on `inputs` (a batch
    for the model, or a list of batches; without, on noise), U fitted to make up for the rest. 0 takes out channels that
    nobody hears: by U, and of a σ that mixes them (CosNet) by its matrix as well, since they go in pairs.
    Raises `ConfigError` where the model carries no branches or cannot be copied.
    """
    if not named_branches(model):
        raise ConfigError("the model carries no branches, so there is nothing to fold; call noble_fx.transform first")
    check_model(model)
    check_drop(drop, inputs)
    copied = copied_for(model, "fold")
    with torch.no_grad():
        merge_adapters(copied)
    if drop is not None and named_branches(copied):
        drop_channels(copied, drop, inputs)
    fold_in_place(copied)
    return copied.eval().requires_grad_(False)


def fold_in_place(model: nn.Module) -> list[Step]:
    """Fold the branches of a model that is nobody else's, and rewrite its graphs to match; one step a branch."""
    done = []
    for fqn, branch in named_branches(model).items():
        before = branch.key
        refusal = more_than_its_tensors(branch) or branch.fold()
        skipped = refusal.reason if refusal else ""
        done.append(Step(fold_branch.name, fqn, before, "" if refusal else branch.key, skipped))
    for capture, module in captured(model):
        capture.rewrite(module, "inference")
    return done

"""A layer with a branch that gets more or fewer outputs: a head, where `resize_token_embeddings` changes a vocabulary.

    W [N, K], U [N, r]      ->      W' [N', K], U' [N', r]      the rows that both have are kept, new ones are drawn

Where the weight is tied, the layer is the same object over a longer weight; otherwise it is a new one of the same class
with the old rows in it. A new layer with rows of its own is another layer, and none of this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.branches.base import Branch
from noble_fx.branches.drawing import drawing
from noble_fx.distributed import is_distributed
from noble_fx.errors import ConfigError
from noble_fx.layers.base import Augmented, plain_class


def resized_outputs(old: Any, new: Any) -> int | None:
    """The N' of `new` where it is `old` with more or fewer outputs, else None."""
    if new is not old and (isinstance(new, Augmented) or type(new) is not plain_class(old)):
        return None
    before, after, branch = old._parameters.get("weight"), new._parameters.get("weight"), old._modules.get("noble")
    if not isinstance(branch, Branch) or before is None or after is None or not before.dim() == after.dim() == 2:
        return None
    before, after = old.matrix(before), old.matrix(after)
    if after.shape[1] != branch.in_features or after.shape[0] == branch.out_features:
        return None
    if new is old or (
        _same_rows(before, after) and _same_rows(old._parameters.get("bias"), new._parameters.get("bias"))
    ):
        return int(after.shape[0])
    return None


def _same_rows(before: Tensor | None, after: Tensor | None) -> bool:
    if before is None or after is None:
        return before is after
    if before.dtype != after.dtype or before.device != after.device or before.is_meta:
        return False
    rows = min(len(before), len(after))
    return not is_distributed(before) and not is_distributed(after) and torch.equal(before[:rows], after[:rows])


def resize(branch: Branch, name: str, out_features: int) -> None:
    """Give the branch of the layer `name` N' outputs; raises `ConfigError` where it cannot follow, unchanged."""
    with torch.no_grad(), drawing(branch.config, branch.drawn_as):
        fresh = _tensors(branch.fresh(out_features))
    own = _tensors(branch)
    if own.keys() != fresh.keys() or any(is_distributed(tensor) for tensor in own.values()):
        raise ConfigError(
            f"the layer {name!r} is resized from {branch.out_features} to {out_features} outputs, and its branch "
            "cannot follow, since it is folded, parametrized, pruned or sharded; resize the model before "
            "noble_fx.transform, or take the branches out first with noble_fx.remove(model)"
        )
    for path, tensor in own.items():
        drawn = fresh[path].detach().to(tensor.device, tensor.dtype)
        if drawn.shape == tensor.shape:
            continue
        shared = tuple(slice(min(sizes)) for sizes in zip(drawn.shape, tensor.shape, strict=True))
        drawn[shared] = tensor.detach()[shared]
        owner, _, leaf = path.rpartition(".")
        module = branch.get_submodule(owner)
        if isinstance(tensor, nn.Parameter):
            module._parameters[leaf] = nn.Parameter(drawn, requires_grad=tensor.requires_grad)
        else:
            module._buffers[leaf] = drawn
    branch.out_features = out_features
    if branch.site is not None:
        branch.site = replace(branch.site, out_features=out_features)


def _tensors(branch: Branch) -> dict[str, Tensor]:
    return {**dict(branch.named_parameters()), **dict(branch.named_buffers())}

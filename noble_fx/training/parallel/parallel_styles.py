"""Tensor parallel with branches: PyTorch's own styles, whose layer's branch is laid over the ranks beside its weight.

    column parallel    W, U and b cut on N; D and σ whole
    row parallel       W and D cut on K; U and σ whole; h is summed over ranks before σ

Any other style of `torch.distributed.tensor.parallel`, or of a user's, gets the same by `with_branch(style)`.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.distributed.tensor.parallel.style import ParallelStyle

from noble_fx.distributed import is_distributed, lay_beside
from noble_fx.errors import ConfigError
from noble_fx.layers.base import Augmented, plain_class
from noble_fx.layers.registry import describe, layout_of


class _WithBranch:
    """In front of a style: the layer is laid out by the style as if it had no branch, and then its branch beside it."""

    src_data_rank: int | None

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        branch = module._modules.get("noble") if isinstance(module, Augmented) else None
        if branch is None:
            return super()._apply(module, device_mesh)  # type: ignore[misc]
        self._check(module, device_mesh)
        at = list(module._modules).index("noble")
        later = {name: module._modules.pop(name) for name in list(module._modules)[at:]}  # in the order that it had
        try:
            done: nn.Module = super()._apply(module, device_mesh)  # type: ignore[misc]
        finally:
            module._modules |= later
        weight = module._parameters.get("weight")
        if not is_distributed(weight):  # type: ignore[arg-type]
            raise ConfigError(
                f"{type(self).__name__} leaves no DTensor in the weight, beside which a branch can be laid"
            )
        lay_beside(branch, weight, layout_of(module), self.src_data_rank)
        return done

    def _check(self, module: nn.Module, mesh: Any) -> None:
        """Refuse widths that the ranks do not divide: their pieces would not fit the next layer's."""
        _, ins, outs = describe(module) or ("", 0, 0)
        for style, name, size in ((ColwiseParallel, "N", outs), (RowwiseParallel, "K", ins)):
            if isinstance(self, style) and size % mesh.size():
                raise ConfigError(
                    f"{plain_class(module).__name__} {ins} → {outs}: {mesh.size()} ranks do not divide {name}={size}; "
                    "leave the layer out of the plan, or take another number of ranks"
                )


class NobleColwiseParallel(_WithBranch, ColwiseParallel):
    """`ColwiseParallel` for layers with a branch: W [N, K], b [N] and U [N, r] are cut on N.

    Raises `ConfigError` where the ranks do not divide N.
    """


class NobleRowwiseParallel(_WithBranch, RowwiseParallel):
    """`RowwiseParallel` for layers with a branch: W [N, K] and D [r, K] are cut on K, and h [.., r] is summed before σ.

    Raises `ConfigError` where the ranks do not divide K.
    """


_CLASSES: dict[type, type] = {ColwiseParallel: NobleColwiseParallel, RowwiseParallel: NobleRowwiseParallel}


def with_branch(style: ParallelStyle) -> ParallelStyle:
    """A copy of a style that lays out a layer's branch as well, and does to any other module what `style` does."""
    kind = type(style)
    if issubclass(kind, _WithBranch):
        return style
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Noble{kind.__name__}", (_WithBranch, kind), {"__module__": kind.__module__})
    own: ParallelStyle = object.__new__(_CLASSES[kind])
    vars(own).update(vars(style))
    return own

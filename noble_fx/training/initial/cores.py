"""σ of a linear branch that has something to learn between D and U: a matrix M [r, r], or a diagonal z [r]."""

from __future__ import annotations

from typing import Any

from torch import nn

from noble_fx.branches.activations import Mixer, ScaleShift


def core(rank: int) -> nn.Module:
    """h Mᵀ, M [r, r] = 0: an `act=` for branches whose D and U stay as they start."""
    made = nn.Linear(rank, rank, bias=False)
    nn.init.zeros_(made.weight)
    return made


def diagonal(rank: int) -> nn.Module:
    """z ⊙ h, z [r] = 0: the same with r numbers."""
    made = ScaleShift(rank, scale=True, shift=False)
    assert made.scale is not None
    nn.init.zeros_(made.scale)
    return made


def core_of(act: Any) -> tuple[str, nn.Parameter] | None:
    """("core", M) or ("diagonal", z) of a σ that is such a one, None of any other, and of no σ."""
    if type(act) in (nn.Linear, Mixer) and act._parameters.get("bias") is None:
        return "core", act.weight
    if type(act) is ScaleShift and act.scale is not None and act.shift is None:
        return "diagonal", act.scale
    return None

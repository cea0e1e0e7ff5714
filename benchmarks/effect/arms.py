"""What is compared: the plain model, and ways to add branches and to let them learn. One row an arm.

A rate of an arm is the base's; what its branches learn at follows from the preset's multipliers, `scaled` by a factor,
or is an `absolute` rate, by the role of the parameter: up is U, mixer M, frequency ω, phase φ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import noble_fx
from benchmarks.effect.tasks import Task

WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class Arm:
    """One way to train; `settings` of `transform`, None for the plain model."""

    name: str
    settings: Mapping[str, Any] | None = None
    widened: bool = False  # a plain model as large as one with branches
    init_base: bool = False  # W drawn as N(0, 0.5/√K)
    scaled: Mapping[str, float] = field(default_factory=dict)
    absolute: Mapping[str, float] = field(default_factory=dict)

    def build(self, task: Task, seed: int) -> nn.Module:
        """The model that is trained; arms that share a width share its base weights."""
        width = self.width(task)
        torch.manual_seed(seed)
        model = task.build(width)
        if self.settings is None and not self.init_base:
            return model
        settings = {"rank": task.rank, "seed": seed, "init_base": self.init_base, **(self.settings or {})}
        noble_fx.transform(model, **settings)
        return model if self.settings is not None else noble_fx.remove(model)

    def width(self, task: Task) -> int:
        """The task's width, or the one at which the plain model has as many parameters as one with branches."""
        if not self.widened:
            return task.width
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            wanted = _size(noble_fx.transform(task.build(), rank=task.rank))
            widths = range(task.width, 2 * task.width, task.heads)
            return min(widths, key=lambda width: abs(_size(task.build(width)) - wanted))

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Groups of an optimizer at the base's rate `lr`."""
        groups = noble_fx.param_groups(model, lr=lr, weight_decay=WEIGHT_DECAY)
        for group in groups:
            role = role_of(group)
            group["lr"] = self.absolute.get(role, group["lr"] * self.scaled.get(role, 1.0))
        return groups


def role_of(group: Mapping[str, Any]) -> str:
    """The role of a group of `param_groups`, "noble.up ×3.48" -> "up"; "" for the base's."""
    kind, dot, rest = group["name"].partition(".")
    return rest.split(" ")[0] if dot and kind == "noble" else ""


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _scaled(factor: float, *roles: str) -> dict[str, float]:
    return dict.fromkeys(roles, factor)


_MATRICES, _SCALARS = ("up", "mixer"), ("frequency", "phase")

ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain"),
        Arm("plain, widened", widened=True),
        Arm("plain, init_base", init_base=True),
        # The published recipes.
        Arm("paper", {}),
        Arm("reference", {"preset": "reference"}),
        Arm("paper, init_base", {}, init_base=True),
        Arm("reference, init_base", {"preset": "reference"}, init_base=True),
        # Other σ, under the paper's multipliers.
        *(Arm(f"paper, {act}", {"act": act}) for act in ("identity", "gelu", "gelu_net", "cos")),
        # Multipliers of the paper, scaled.
        *(Arm(f"paper, U M × {f:g}", {}, scaled=_scaled(f, *_MATRICES)) for f in (0.5, 0.25)),
        *(Arm(f"paper, ω φ × {f:g}", {}, scaled=_scaled(f, *_SCALARS)) for f in (0.5, 0.25)),
        *(Arm(f"paper, all × {f:g}", {}, scaled=_scaled(f, *_MATRICES, *_SCALARS)) for f in (0.5, 0.25)),
        Arm("paper, ω φ absolute", {}, absolute={"frequency": 3e-3, "phase": 5e-3}),
        Arm("paper, U M absolute", {}, absolute={"up": 4e-3, "mixer": 3e-3}),
        # No multiplier at all.
        Arm("flat", {"preset": "flat"}),
        Arm("flat, init_base", {"preset": "flat"}, init_base=True),
        *(Arm(f"flat, {act}", {"preset": "flat", "act": act}) for act in ("identity", "gelu", "gelu_net", "cos")),
        # Where the branches are.
        Arm("flat, attention", {"preset": "flat", "select": "attention"}),
        Arm("flat, ffn", {"preset": "flat", "select": "ffn"}),
        # One branch around a block.
        Arm("paper, block", {"scope": "block"}),
        Arm("flat, block", {"preset": "flat", "scope": "block"}),
        Arm("paper, gelu, block", {"act": "gelu", "scope": "block"}),
        Arm("paper, gelu, block, r = C/2", {"act": "gelu", "scope": "block", "rank": 0.5}),
        # What came out best, varied once more.
        Arm("paper, gelu, U × 0.5", {"act": "gelu"}, scaled=_scaled(0.5, *_MATRICES)),
        Arm("paper, gelu_net, U M × 0.5", {"act": "gelu_net"}, scaled=_scaled(0.5, *_MATRICES)),
    )
}

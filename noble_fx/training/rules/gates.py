"""Gates w ⊙ σ(h) that are pressed to zero while they learn, so that channels go (CoDyRA, arXiv 2412.01004).

After each step w becomes sign(w) · max(|w| − κ, 0), which is the proximal step of κ‖w‖₁: what is within κ of zero is
zero, the rest is moved by κ. (The paper's released code zeroes what is within 2κ.) Experimental for branches with a σ.
"""

from __future__ import annotations

from torch import Tensor, nn

from noble_fx.attach.restore import restored_on_error
from noble_fx.branches.activations import ScaleShift
from noble_fx.branches.base import Branch
from noble_fx.branches.masks import bare, gated
from noble_fx.errors import ConfigError, shown
from noble_fx.training.changing.running import Running, running
from noble_fx.training.rules.base import Rule
from noble_fx.training.rules.channels import branches_of, gate, with_places, without_places


class Gates(Rule):
    """Gives every branch a gate w [r] = 1 behind σ, and shrinks it by `kappa` after each step; `kappa` may be set anew.

    Make it before the optimizer, which must hold w (role "scale"), and before the model is wrapped. Weight decay acts
    on w too. Afterwards `noble_fx.truncate(model)` cuts what is zero, or `close()` makes U ⊙ w of it; save only then:
    a file knows no gates. Raises `ConfigError` for a branch without a σ that is known, and what `set_rank` raises.
    """

    def __init__(self, model: nn.Module, kappa: float = 0.0) -> None:
        self.kappa = checked_kappa(kappa)
        found = without_places(model)
        self._model = found.model

        def with_gate(branch: Branch, act: nn.Module) -> nn.Module:
            return gated(act, branch.rank, next(branch.parameters()))

        self._branches = with_places(found, with_gate, "given a gate")

    def after_step(self) -> None:
        """Shrink the gates."""
        kappa = checked_kappa(self.kappa)
        for branch in self._branches:
            held = gate(branch)
            if kappa and held is not None and held.scale is not None:
                shrink(held.scale, kappa)

    def left(self) -> dict[str, int]:
        """How many channels of each branch are not zero, by its layer's name."""
        found = running(self._model)
        return {name: speaking(held) for name, branch in branches_of(found) if (held := gate(branch)) is not None}

    def close(self) -> nn.Module:
        """Make U ⊙ w of the gates, which changes nothing, and take them out; returns the model."""
        fold_gates(running(self._model))
        return self._model


def fold_gates(found: Running) -> None:
    """U ⊙ w for U, and σ without a gate, in every branch that has one; the model is as it was on an error."""
    with restored_on_error(found.model) as before:
        before.keep(parameter for _, branch in branches_of(found) for parameter in branch.parameters())
        for name, branch in branches_of(found):
            held = gate(branch)
            if held is None or held.scale is None:
                continue
            if refusal := branch.with_sigma(bare, held.scale.detach()):
                raise ConfigError(f"the gate of the branch at {name!r} cannot be folded: {refusal.reason}")


def speaking(held: ScaleShift) -> int:
    """How many of its entries are not zero."""
    return 0 if held.scale is None else int(held.scale.count_nonzero())


def shrink(weight: Tensor, kappa: float) -> None:
    """sign(w) · max(|w| − κ, 0) in place."""
    own = weight.detach()
    own.copy_(own.sign() * (own.abs() - kappa).clamp(min=0))


def checked_kappa(kappa: float) -> float:
    """A number ≥ 0; raises `ConfigError`."""
    if isinstance(kappa, bool) or not isinstance(kappa, int | float) or not 0 <= kappa < float("inf"):
        raise ConfigError(f"kappa={shown(kappa)} must be a number, 0 or more")
    return float(kappa)

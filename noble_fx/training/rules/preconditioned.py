"""Gradients of D and U as the step of s U D wants them, whatever basis of the r channels D and U happen to be in.

With G = dL/d(ΔW) [N, K], backward gives gU = s G Dᵀ and gD = s Uᵀ G. The rule divides by the r × r Gram matrices:

    ĝU = gU (s² D Dᵀ + δ)⁻¹        s ĝU D = G P_D         P_D the projection on the rows of D
    ĝD = (s² Uᵀ U + δ)⁻¹ gD        s U ĝD = P_U G         P_U the projection on the columns of U

"riemannian" does both in every step, so what both reach, P_U G P_D, counts twice. "altlora" does one a step, U first,
and carries its momentum over from the other matrix as it was to what it is (arXiv 2505.12455):

    m_D ← β (s² Uᵀ U + δ)⁻¹ s² Uᵀ U_old m_D + (1 − β) ĝD        and the same for U, from the other side

Nothing is N × K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from noble_fx.branches.factors import Factors
from noble_fx.errors import ConfigError, shown
from noble_fx.training.rules.base import Rule
from noble_fx.training.rules.inverse import check_damping, inverses, wide
from noble_fx.training.rules.pairs import gradient, pairs

RULES = ("riemannian", "altlora")
SIDES = ("up", "down")  # U first: where U = 0, as a linear branch starts, D has no gradient yet


class Preconditioned(Rule):
    """Gradients of the linear branches' D and U, over their Gram matrices; `rule` is "riemannian" or "altlora".

    "altlora" makes the momentum itself (`beta`, 0 for none) and leaves one matrix of each pair without a gradient, so
    that an optimizer passes it over: take SGD, or another without a first moment. Raises `ConfigError` for a branch
    that learns and is not linear, and `CaptureError` for branches in shards.
    """

    edits_gradients = True

    def __init__(self, model: nn.Module, rule: str = "riemannian", damping: float = 1e-2, beta: float = 0.9) -> None:
        if rule not in RULES:
            raise ConfigError(f"rule={shown(rule)} must be one of {', '.join(map(repr, RULES))}")
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < 1:
            raise ConfigError(f"beta={shown(beta)} must be a number, 0 ≤ beta < 1")
        self.model, self.rule, self.damping, self.beta = model, rule, check_damping(damping), float(beta)
        self._turn = 0
        self._moments: dict[str, dict[str, Any]] = {}  # by "layer/side": momentum, the other matrix then, steps
        pairs(model)

    def before_step(self) -> None:
        """Write the gradients anew; a pair that no loss has reached is left alone."""
        found = [(name, pair) for name, pair in pairs(self.model).items()]
        if self.rule == "riemannian":
            todo = [(name, pair, side) for name, pair in found for side in SIDES]
        else:
            todo = [(name, pair, _whose_turn(pair, self._turn)) for name, pair in found]
            self._turn += 1
        todo = [(name, pair, side) for name, pair, side in todo if gradient(getattr(pair, side)) is not None]
        others = [_other(pair, side) for _, pair, side in todo]
        solved = inverses(
            [pair.scale**2 * (other @ other.mT) for (_, pair, _), other in zip(todo, others, strict=True)], self.damping
        )
        for (name, pair, side), other, inverse in zip(todo, others, solved, strict=True):
            own: Tensor = getattr(pair, side).grad
            new = inverse @ _lying(wide(own), side)
            if self.rule == "altlora":
                new = self._with_momentum(f"{name}/{side}", new, inverse, pair.scale * other)
                getattr(pair, _opposite(side)).grad = None
            own.copy_(_lying(new, side))

    def _with_momentum(self, key: str, new: Tensor, inverse: Tensor, other: Tensor) -> Tensor:
        """The running mean of `new` [r, ·], carried from what `other` [r, ·] was to what it is; bias corrected."""
        if not self.beta:
            return new
        before = self._moments.get(key)
        if before is None or before["mean"].shape != new.shape or before["other"].shape != other.shape:
            before = {"mean": new.new_zeros(()), "other": other, "steps": 0}  # at first, or of another rank by now
        else:
            carried = inverse @ (other @ before["other"].mT) @ before["mean"]
            before = {**before, "mean": carried}
        mean, steps = self.beta * before["mean"] + (1 - self.beta) * new, before["steps"] + 1
        self._moments[key] = {"mean": mean, "other": other.clone(), "steps": steps}
        corrected: Tensor = mean / (1 - self.beta**steps)
        return corrected

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Of "altlora": a first moment of the optimizer's own would be left behind in a basis that has moved."""
        if self.rule != "altlora":
            return
        own = {id(parameter) for pair in pairs(self.model).values() for parameter in (pair.down, pair.up)}
        for group in optimizer.param_groups:
            if any(id(p) in own for p in group["params"]) and (group.get("momentum") or (group.get("betas") or [0])[0]):
                raise ConfigError(
                    f"rule='altlora' carries the momentum of D and U over itself, and {type(optimizer).__name__} would "
                    "average once more in a basis that has moved; give their group momentum=0 (or betas=(0, …)), or "
                    "take rule='riemannian'"
                )

    def state_dict(self) -> dict[str, Any]:
        """What a run that is resumed needs: whose turn it is, and the momenta."""
        return {"turn": self._turn, "moments": {key: dict(held) for key, held in self._moments.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up again; raises `ConfigError` for momenta of layers that are not there."""
        known = {f"{name}/{side}": pair for name, pair in pairs(self.model).items() for side in SIDES}
        if strange := sorted(state["moments"].keys() - known.keys()):
            raise ConfigError(f"the state holds a momentum of {strange[0]!r}, and the model has no such pair")
        self._turn = int(state["turn"])
        self._moments = {
            key: {**held, **{name: held[name].to(known[key].down.device) for name in ("mean", "other")}}
            for key, held in state["moments"].items()
        }


def _whose_turn(pair: Factors, turn: int) -> str:
    learning = [side for side in SIDES if getattr(pair, side).requires_grad]
    return learning[turn % len(learning)]


def _opposite(side: str) -> str:
    return SIDES[1 - SIDES.index(side)]


def _lying(tensor: Tensor, side: str) -> Tensor:
    """With the r channels as rows, and back: D as it is, U transposed."""
    return tensor.mT if side == "up" else tensor


def _other(pair: Factors, side: str) -> Tensor:
    """The other matrix of the pair with its channels as rows, [r, ·], in float32 or better."""
    opposite = _opposite(side)
    return _lying(wide(getattr(pair, opposite)), opposite)

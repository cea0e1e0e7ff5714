"""What is known of each layer where a budget is spread, and what a budget is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from noble_fx.compressing.factors import allowed_ranks
from noble_fx.errors import ConfigError

DENSE = 0  # the rank of a layer that stays as it is


@dataclass(frozen=True)
class Candidate:
    """One layer [N, K]: the share of its output that each rank loses [m + 1], and how much each direction is worth."""

    name: str
    role: str
    outputs: int
    inputs: int
    shares: Tensor
    spectrum: Tensor
    step: int = 8  # ranks are multiples of it
    extra: int = 0  # parameters besides the two factors: a bias that the layer did not have

    @property
    def dense(self) -> int:
        """Parameters as it is."""
        return self.outputs * self.inputs

    @property
    def ranks(self) -> range:
        """The ranks that save something."""
        return allowed_ranks(self.outputs, self.inputs, self.step, self.extra)

    def cost(self, rank: int) -> int:
        """Parameters at a rank."""
        return self.dense if rank == DENSE else rank * (self.outputs + self.inputs) + self.extra

    def lost(self, rank: int) -> float:
        """The share of its output that is lost at a rank."""
        return 0.0 if rank == DENSE else float(self.shares[rank])

    def within(self, parameters: float) -> int:
        """The largest rank that costs no more; the least one where even that costs more, dense where nothing saves."""
        if not self.ranks or parameters >= self.dense:
            return DENSE
        return next((rank for rank in reversed(self.ranks) if self.cost(rank) <= parameters), self.ranks[0])

    def cut_to(self, rank: int) -> int:
        """The nearest allowed rank that is not above `rank`, the least one below that; dense from break-even on."""
        if not self.ranks or rank * (self.outputs + self.inputs) + self.extra >= self.dense:
            return DENSE
        return next((each for each in reversed(self.ranks) if each <= rank), self.ranks[0])


Allocation = Callable[[Sequence[Candidate], float], dict[str, int]]  # (layers, share of their parameters) -> ranks


def check_budget(candidates: Sequence[Candidate], keep: float) -> float:
    """The parameters that `keep` allows; raises `ConfigError` where the least ranks cost more."""
    dense = sum(each.dense for each in candidates)
    least = sum(each.cost(each.ranks[0]) if each.ranks else each.dense for each in candidates)
    if least > keep * dense:
        raise ConfigError(
            f"keep={keep:.4g} of the {dense:,} parameters of {len(candidates)} layers is {keep * dense:,.0f}, and the "
            f"least ranks need {least:,}; keep at least {-(-least * 10000 // dense) / 10000:.4f}, pass a smaller "
            "round_to, or select other layers"
        )
    return keep * dense

"""`method="saes"`: in sequence, each layer made right for the model before it (2602.03051), with a fixed mixture.

    target   (1 − β) W x + β W x̂        x what the compressed model gives the layer, x̂ what the original gave it

The best full matrix L for that target comes first, then `activations` of L: together the best of its rank. The paper
chooses β anew for each layer; its only public reproduction did not gain what it promises, so here it is one number.
"""

from __future__ import annotations

from noble_fx.compressing.factors import Factors
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.problem import Problem, best_outputs
from noble_fx.errors import ConfigError, shown

BETA = 0.5


class Saes(Method):
    """`Activations` with a mixed target; `Saes(beta=0.3)` in the place of a name for another mixture."""

    needs_inputs = False  # but for the correction, which asks for them itself

    def __init__(self, beta: float = BETA):
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
            raise ConfigError(f"beta={shown(beta)} must be a number from 0 (the compressed model) to 1 (the original)")
        self.mix = float(beta)

    def factorise(self, problem: Problem) -> Factors:
        """Both factors of a weight that was corrected for the target already (`target.py`)."""
        return best_outputs(problem)

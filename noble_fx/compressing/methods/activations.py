"""`method="activations"`: the least error on the calibration outputs that any matrix of its rank has.

A = Q, B = Qᵀ W        Q the top eigenvectors of the covariance of the outputs; the error is what the others hold
"""

from __future__ import annotations

from noble_fx.compressing.factors import Factors
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.problem import Problem, best_outputs


class Activations(Method):
    """The optimum on the calibration rows."""

    needs_inputs = False

    def factorise(self, problem: Problem) -> Factors:
        """Both factors from one eigendecomposition, of the smaller side."""
        return best_outputs(problem)

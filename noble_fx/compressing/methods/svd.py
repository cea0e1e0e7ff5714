"""`method="svd"`: the matrix alone, without data.

W = L Σ Rᵀ        A = L √Σ, B = √Σ Rᵀ        the form that LoRD (2309.14021) and Greenformer (2108.10808) start from
"""

from __future__ import annotations

import torch

from noble_fx.compressing.factors import Factors, losses
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.problem import Problem


class Svd(Method):
    """The nearest matrix of its rank, all inputs being alike."""

    needs_data = False

    def factorise(self, problem: Problem) -> Factors:
        """Both factors from one singular value decomposition."""
        left, values, right = torch.linalg.svd(problem.weight, full_matrices=False)
        left, right = left * values.sqrt(), values.sqrt().unsqueeze(1) * right
        if problem.inputs is not None:
            lost = losses(problem.weight, left, right, problem.inputs)
        else:
            lost = torch.cat([values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)])
        return Factors(left, right, lost, values, problem.total)

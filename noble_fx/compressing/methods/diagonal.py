"""`method="diagonal"`: the matrix with each input channel scaled by how large it is, ASVD's (2312.05821) idea.

    W diag(s) = L Σ Rᵀ        A = L √Σ, B = √Σ Rᵀ diag(1/s)        s the root mean square of the channel

Here to be compared with: what channels have to do with each other is left out, and `activations` costs no more.
"""

from __future__ import annotations

import torch

from noble_fx.compressing.factors import Factors, losses
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.problem import Problem

_LEAST = 1e-6  # of the largest scale: a channel that is always zero still has a finite row of B


class Diagonal(Method):
    """A singular value decomposition in scaled channels."""

    def factorise(self, problem: Problem) -> Factors:
        """Both factors from one singular value decomposition."""
        scale = problem.covariance.diagonal().clamp(min=0).sqrt()
        scale = scale.clamp(min=float(_LEAST * scale.max())) if scale.any() else torch.ones_like(scale)
        left, values, right = torch.linalg.svd(problem.weight * scale, full_matrices=False)
        left, right = left * values.sqrt(), values.sqrt().unsqueeze(1) * right / scale
        return Factors(left, right, losses(problem.weight, left, right, problem.covariance), values, problem.total)

"""One weight to be factorised, and what its calibration says: the data of every method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noble_fx.compressing.factors import Factors


@dataclass(frozen=True)
class Problem:
    """W [N, K] in float64, with S [K, K] of its inputs or W S Wᵀ [N, N] of its outputs; with neither, all are alike.

    `total` is the variation of the layer's output, of which errors are shares.
    """

    weight: Tensor
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    total: float = 0.0

    @classmethod
    def without_data(cls, weight: Tensor) -> Problem:
        """Errors are those of the matrix itself."""
        return cls(weight, total=float(weight.square().sum()))

    @property
    def covariance(self) -> Tensor:
        """S [K, K]."""
        if self.inputs is not None:
            return self.inputs
        assert self.outputs is None, "asked for outputs alone"
        return torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)


def best_outputs(problem: Problem) -> Factors:
    """A = Q, B = Qᵀ W with Q the top eigenvectors of W S Wᵀ: the least error on the outputs at every rank, exactly.

    Of a tall W the eigenproblem is that of R S Rᵀ [K, K], W = P R: no larger than the smaller side, without a root or
    an inverse of S, and at full rank W itself whatever S lacks.
    """
    weight = problem.weight
    outputs, inputs = weight.shape
    if outputs > inputs:
        basis, small = torch.linalg.qr(weight)
        gram = small @ problem.covariance @ small.T
    else:
        basis = None
        gram = problem.outputs if problem.outputs is not None else weight @ problem.covariance @ weight.T
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    left = vectors if basis is None else basis @ vectors
    tails = torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])
    return Factors(left, left.T @ weight, tails, values.sqrt(), problem.total)

"""What free terms leave of a sum: a bias and a branch's U are fitted anew beside the weight, so only the rest counts.

    z ≈ ẑ + U' t + b'       t [n, r] free features, 1 the bias

For whatever ẑ is, the best U' and b' are a least-squares fit. What they cannot reach is z with its mean and its
regression on t taken out, S = C_zz − C_zt C_tt⁻¹ C_tz: a factorisation that is best for S is best together with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PLENTY = 16  # rows for each feature, from where on the fit is not shrunk
_NOTHING = 1e-12  # of the largest eigenvalue: features that add nothing to the others


@dataclass(frozen=True)
class Fit:
    """How free terms follow z: `slope` C_zt C_tt⁻¹ [m, r], and the means of z [m] and t [r], zero without a bias."""

    slope: Tensor
    mean: Tensor
    mean_free: Tensor


@dataclass(frozen=True)
class Residual:
    """Rows v = [z | t | 1] summed: `rest` is S [m, m]."""

    rest: Tensor
    fit: Fit
    within: Tensor  # Σ of [z | t] about its mean [m + r, m + r]
    inverse: Tensor  # C_tt⁻¹ [r, r]

    @property
    def width(self) -> int:
        """m, how wide z is."""
        return len(self.rest)


def residual(sums: Tensor, free: int, centred: bool) -> Residual:
    """Of Σ vᵀv of v = [z | t | 1] with `free` columns of t; the mean is a free term too where it is `centred`."""
    rows = float(sums[-1, -1])
    within, mean = sums[:-1, :-1], sums[-1, :-1] / rows
    if centred:
        within = within - rows * mean.outer(mean)
    else:
        mean = torch.zeros_like(mean)
    width = len(within) - free
    inverse = _inverse(within[width:, width:], rows)
    slope = within[:width, width:] @ inverse
    rest = within[:width, :width] - slope @ within[width:, :width]
    return Residual((rest + rest.T) / 2, Fit(slope, mean[:width], mean[width:]), within, inverse)


def _inverse(features: Tensor, rows: float) -> Tensor:
    """C_tt⁻¹ [r, r]: of its range alone, and with a ridge where there are few rows for so many features."""
    count = len(features)
    if not count:
        return features
    scale = features.diagonal().clamp(min=torch.finfo(features.dtype).tiny).rsqrt()
    values, vectors = torch.linalg.eigh(features * scale.outer(scale))
    ridge = count / rows if rows < _PLENTY * (count + 1) else 0.0
    kept = values > _NOTHING * values[-1].clamp(min=_NOTHING)
    inverses = torch.where(kept, 1 / (values + ridge).clamp(min=_NOTHING**2), 0.0)
    return scale.outer(scale) * ((vectors * inverses) @ vectors.T)

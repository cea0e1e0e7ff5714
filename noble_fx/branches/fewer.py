"""Which channels a branch loses least without, and its matrices fitted again to what it computed with all of them.

    G = Cᵀ C        of the inputs C [rows, r] of a matrix W [N, r]
    (W_i)² / (G⁻¹)_ii       what the result loses without column i, where the others make up for it as well as they can

The channel that costs least goes, W and G⁻¹ follow, and so on (the optimal brain surgeon, for the squared error of the
result). All in float64; rows count by their sums of products alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 1e-6  # of the mean of G's diagonal: what few rows do not tell stays as it is


def survivors(inputs: Tensor, weight: Tensor, count: int) -> Tensor:
    """The `count` of the columns of `weight` [N, r] that its result for `inputs` [rows, r] needs most, in order."""
    weight = torch.linalg.qr(weight).R if weight.shape[0] > weight.shape[1] else weight.clone()
    inverse = torch.linalg.inv(_damped(inputs.T @ inputs))
    alive = torch.ones(len(inverse), dtype=torch.bool)
    for _ in range(len(inverse) - count):
        loss = weight.square().sum(0) / inverse.diagonal()
        out = int(torch.where(alive, loss, torch.inf).argmin())
        share = inverse[out] / inverse[out, out]
        weight -= weight[:, out : out + 1] * share
        inverse -= inverse[:, out : out + 1] * share
        alive[out] = False
    return alive.nonzero().squeeze(1)


def refitted(weight: Tensor, inputs: Tensor, wanted: Tensor, wanted_inputs: Tensor) -> Tensor:
    """`weight` [N, k] moved so that inputs weightᵀ is as near to wanted_inputs wantedᵀ as it gets, [rows, N] both."""
    gram = inputs.T @ inputs
    residual = wanted @ (wanted_inputs.T @ inputs) - weight @ gram
    return weight + torch.linalg.solve(_damped(gram), residual.T).T


def relative_error(weight: Tensor, inputs: Tensor, wanted: Tensor, wanted_inputs: Tensor) -> float:
    """‖inputs weightᵀ − wanted_inputs wantedᵀ‖ over the latter's norm; 0 where both are zero."""
    both, joined = torch.cat([inputs, wanted_inputs], 1), torch.cat([weight, -wanted], 1)
    off, whole = _norm(both, joined), _norm(wanted_inputs, wanted)
    return off / whole if whole else (0.0 if not off else float("inf"))


def _norm(inputs: Tensor, weight: Tensor) -> float:
    squared = (inputs.T @ inputs * (weight.T @ weight)).sum()
    return float(squared.clamp(min=0).sqrt())


def _damped(gram: Tensor) -> Tensor:
    damping = _DAMPING * float(gram.diagonal().mean()) + 1e-30
    return gram + damping * torch.eye(len(gram), dtype=gram.dtype)

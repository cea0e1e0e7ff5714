"""Where a linear branch starts: D [r, K], U [N, r] and what is between them, of a matrix [N, K] of its layer.

    svd           D the r leading right singular vectors of W, U = 0                       D and U learn
    tiled         D = [I I … I], cut at K, U = 0 (MiSS, arXiv 2409.15371)                  U learns
    orthonormal   D, U the leading singular vectors of W, M = 0 (LaMDA, arXiv 2406.12832)  M [r, r] learns
    gradient      D, U, M = diag of the rank-r SVD of −lr · sign(Σ G) (LoRA-SB, 2411.19557)  M learns
    ldu           W = P L diag(d) R: D = the first rows of R, U = of P L, z = 0 (LoLDU, 2410.13618)  z [r] learns

None of them takes anything off W. The papers that do (LoLDU's W − s P L_r diag(d_r) R_r) put back at the start what
they took: here z is what theirs is beyond d, with the same gradient, and W keeps its values, so `disabled` and `remove`
give the base to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Values:
    """What to start from; `between` is M [r, r], z [r], or None."""

    down: Tensor
    up: Tensor
    between: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """How values are made of a matrix, what must stand between D and U for it, and which of the three learn."""

    values: Callable[[Tensor, int], Values]
    between: str  # "", "core" or "diagonal"
    learns: tuple[str, ...]
    of_gradient: bool = False  # the matrix is −lr · sign(Σ G), not W
    keeps: bool = True  # the model computes at the start what it does without branches


def _svd(matrix: Tensor, rank: int) -> Values:
    _, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return Values(right[:rank], matrix.new_zeros(len(matrix), rank))


def _tiled(matrix: Tensor, rank: int) -> Values:
    columns = torch.arange(matrix.shape[1], device=matrix.device) % rank
    down = torch.eye(rank, dtype=matrix.dtype, device=matrix.device)[:, columns]
    return Values(down, matrix.new_zeros(len(matrix), rank))


def _orthonormal(matrix: Tensor, rank: int) -> Values:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return Values(right[:rank], left[:, :rank], matrix.new_zeros(rank, rank))


def _gradient(matrix: Tensor, rank: int) -> Values:
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    return Values(right[:rank], left[:, :rank], torch.diag(sizes[:rank]))


def _ldu(matrix: Tensor, rank: int) -> Values:
    order, lower, upper = torch.linalg.lu(matrix)
    pivots = upper.diagonal()[:rank]
    # A pivot of zero divides nothing: its row is as good a direction as it is.
    down = upper[:rank] / torch.where(pivots == 0, 1, pivots)[:, None]
    return Values(down, (order @ lower)[:, :rank], matrix.new_zeros(rank))


METHODS: dict[str, Method] = {
    "svd": Method(_svd, "", ("down", "up")),
    "tiled": Method(_tiled, "", ("up",)),
    "orthonormal": Method(_orthonormal, "core", ("between",)),
    "gradient": Method(_gradient, "core", ("between",), of_gradient=True, keeps=False),
    "ldu": Method(_ldu, "diagonal", ("between",)),
}

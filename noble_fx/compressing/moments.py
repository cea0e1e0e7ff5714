"""Sums over calibration rows, in float64: all that a factorisation asks of the data, however long it is.

    Σ vᵀv [d, d] of rows v [n, d]      Σ wᵀv [e, d] of pairs of rows

Rows are multiplied in float64 as well: with products in float32 an error below 3e-4 of the output would be noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 4096  # that are float64 at a time
_STRIPS = 4  # of a symmetric sum, of which what lies below the diagonal is not computed


class Moments:
    """Σ vᵀv of the rows that were added, on the device of the first ones; `cross` adds Σ wᵀv of a partner of each."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, rows: Tensor, partners: Tensor | None = None) -> None:
        """Add rows [n, d], and the partners [n, e] that they are multiplied with besides."""
        for at in range(0, len(rows), _ROWS):
            piece = wide(rows[at : at + _ROWS])
            self._sums = _add_gram(self._sums, piece)
            if partners is not None:
                other = wide(partners[at : at + _ROWS])
                if self._cross is None:
                    self._cross = piece.new_zeros(other.shape[1], piece.shape[1])
                self._cross.addmm_(other.T, piece)
        self.rows += len(rows)

    @property
    def finite(self) -> bool:
        """Whether every value so far was a number; one that was none shows on the diagonal."""
        return self._sums is None or bool(self._sums.diagonal().isfinite().all())

    @property
    def sums(self) -> Tensor:
        """Σ vᵀv [d, d]."""
        assert self._sums is not None, "no rows"
        upper = self._sums.triu()
        return upper + upper.triu(1).T

    @property
    def cross(self) -> Tensor | None:
        """Σ wᵀv [e, d], where there were partners."""
        return self._cross


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU where its own device has none."""
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)


def _add_gram(sums: Tensor | None, rows: Tensor) -> Tensor:
    """`sums` and rowsᵀ rows, right on and above the diagonal."""
    width = rows.shape[1]
    sums = rows.new_zeros(width, width) if sums is None else sums
    step = -(-width // _STRIPS)
    for start in range(0, width, step):
        sums[start : start + step, start:].addmm_(rows[:, start : start + step].T, rows[:, start:])
    return sums

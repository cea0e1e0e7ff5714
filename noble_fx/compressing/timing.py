"""Whether two thin products are faster than the dense one, here, for so many rows: measured, in turns.

A model that writes a token at a time reads each weight once a row, so half of the numbers is half of the time; but two
launches are two, and of small layers they are most of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.compressing.allocation.base import DENSE, Candidate
from noble_fx.compressing.budget import Decision
from noble_fx.compressing.places import Place
from noble_fx.interleaved import interleave

_ROUNDS, _WARMUP = 40, 5


class Stopwatch:
    """Decides once more of a rank: layers that would not be faster at `rows` rows stay dense. Each shape once."""

    def __init__(self, places: list[Place], rows: int):
        self._places = {place.name: place for place in places}
        self.rows = rows
        self._ratio = cache(_ratio)

    def check(self, candidate: Candidate, decided: Decision) -> Decision:
        """The decision, or DENSE with what was measured."""
        rank, _ = decided
        if rank == DENSE:
            return decided
        weight = self._places[candidate.name].weight
        ratio = self._ratio(*weight.shape, rank, self.rows, weight.dtype, weight.device)
        if ratio < 1:
            return decided
        return (
            DENSE,
            f"two thin products of rank {rank} take {ratio:.2f} times as long at {self.rows} rows, measured here",
        )


def _ratio(outputs: int, inputs: int, rank: int, rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """The time of two thin products over that of the dense one; the median of rounds in turns."""

    def made(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, weight, up, down = made(rows, inputs), made(outputs, inputs), made(outputs, rank), made(rank, inputs)
    variants = {
        "dense": _finished(lambda: F.linear(x, weight), device),
        "thin": _finished(lambda: F.linear(F.linear(x, down), up), device),
    }
    with torch.no_grad():
        timings = {timing.name: timing for timing in interleave(variants, "dense", _ROUNDS, _WARMUP)}
    return 1 + timings["thin"].overhead


def _finished(call: Callable[[], Tensor], device: torch.device) -> Callable[[], object]:
    """The call with its end waited for."""
    if device.type != "cuda":
        return call

    def waited() -> None:
        call()
        torch.cuda.synchronize(device)

    return waited

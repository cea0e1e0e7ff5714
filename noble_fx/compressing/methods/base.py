"""What every method of factorising a matrix is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from noble_fx.compressing.factors import Factors
from noble_fx.compressing.problem import Problem


class Method(ABC):
    """One way to make two thin matrices of one; a subclass in a file of its own, with a row in `table.py`."""

    needs_inputs: ClassVar[bool] = True  # S itself; where False, W S Wᵀ is enough for it
    needs_data: ClassVar[bool] = True  # a method without it takes calibration too, for the error on it
    allocation: ClassVar[str] = "marginal"  # how a budget is spread where nobody says
    mix: float | None = None  # β: calibrated in sequence, towards (1 − β) W x + β W x of the uncompressed model

    @abstractmethod
    def factorise(self, problem: Problem) -> Factors:
        """Both factors and the loss at every rank."""

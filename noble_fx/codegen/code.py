"""Pieces of a generated line as values: what a text is, and which lanes of a tile count.

The lowering never looks into a text to learn what it is. A `Code` was told when it was made: a number, a name, a call
(which needs no parentheses anywhere) or an expression (which may). A `Mask` is the conditions that must all hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a piece of code is, and so what it needs where it is used."""

    NUMBER = "number"  # the same for every lane; not a tile
    NAME = "name"  # a variable
    CALL = "call"  # f(…) or a[…]: binds as tightly as a name
    EXPRESSION = "expression"  # has operators: parentheses where another operator meets it


@dataclass(frozen=True)
class Code:
    """The text of a tile or of a number; `value` is a number's own."""

    text: str
    kind: Kind = Kind.EXPRESSION
    value: float | None = None

    @classmethod
    def number(cls, value: float) -> Code:
        """A Python number as source text; infinities and NaN as Triton takes them."""
        text = f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else repr(value)
        return cls(text, Kind.NUMBER, float(value))

    @classmethod
    def name(cls, text: str) -> Code:
        """A variable."""
        return cls(text, Kind.NAME)

    @classmethod
    def call(cls, text: str) -> Code:
        """A call or an index."""
        return cls(text, Kind.CALL)

    @property
    def is_number(self) -> bool:
        """True for what is no tile but a number."""
        return self.kind is Kind.NUMBER

    @property
    def is_name(self) -> bool:
        """True for a variable, which needs no line of its own."""
        return self.kind is Kind.NAME

    @property
    def grouped(self) -> str:
        """The text where an operator meets it: in parentheses if it has operators itself."""
        return f"({self.text})" if self.kind is Kind.EXPRESSION else self.text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Mask:
    """Which lanes of a tile hold something: those where every condition is true; without conditions, all."""

    conditions: tuple[Code, ...] = ()

    @classmethod
    def where(cls, condition: str) -> Mask:
        """The lanes where one comparison is true."""
        return cls((Code(condition),))

    @classmethod
    def between(cls, name: str, first: int, end: int, count: int) -> Mask:
        """first ≤ name < end, of a name that is at least 0 and less than `count`."""
        low = cls.where(f"{name} >= {first}") if first else cls()
        return low & (cls.where(f"{name} < {end}") if end < count else cls())

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.conditions + other.conditions)

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def __str__(self) -> str:
        if len(self.conditions) == 1:
            return self.conditions[0].text
        return " & ".join(condition.grouped for condition in self.conditions)

    @property
    def joined(self) -> bool:
        """True for several conditions, which read better on a line of their own."""
        return len(self.conditions) > 1

    def argument(self, line: Callable[[str], object], other: str = "") -> str:
        """`, mask=…` for a load or a store, nothing for all lanes; what is joined is first written as `inside`."""
        if not self:
            return ""
        text = str(self)
        if self.joined:
            line(f"inside = {text}")
            text = "inside"
        return f", mask={text}{f', other={other}' if other else ''}"


LIVE = Mask((Code.call("live[:, None]"),))  # the rows of a tile that are rows of the tensor

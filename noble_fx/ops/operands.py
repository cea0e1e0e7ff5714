"""The operands of one call of `noble_fx::linear` or `noble_fx::linear_group`, and the orders in which they are passed.

    flat     x, W₁ … W_G, b₁ … b_G, D₁ … D_G, d₁ … d_G, U₁ … U_G, σ₁'s … σ_G's        None where there is none
    linear   x, W, b, D, d, U, [σ's …], key                                           G = 1
    group    x, [W₁ … W_G], [b₁ … b_G], [D …], [d …], [U …], [σ₁'s … σ_G's], key      [] where there is none

An operand is whatever stands for a tensor: the tensor, a node of a graph, a name, its gradient, or whether that is
needed. Nothing else in the project counts places in these orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

from torch import fx

from noble_fx.schema import LINEAR, LINEAR_GROUP

T = TypeVar("T")
S = TypeVar("S")
_NAMES = ("x", "weight", "bias", "down", "down_bias", "up", "act", "act_key")  # of either operator's arguments


class SiteOperands(NamedTuple, Generic[T]):
    """What one site has of its own: W, b, D, d, U, and σ's tensors, parameters first."""

    weight: T
    bias: T | None
    down: T
    down_bias: T | None
    up: T
    act: tuple[T, ...]


_FIELDS = len(SiteOperands._fields) - 1  # all but σ's, of which a site has any number
_ACT = 1 + _FIELDS  # where they begin in the flat order of one site


@dataclass(frozen=True, slots=True)
class Operands(Generic[T]):
    """x, what each of G sites has of its own, and the key of their σ."""

    x: T
    sites: tuple[SiteOperands[T], ...]
    key: str = ""

    # --- read ------------------------------------------------------------------------------------------------------

    @classmethod
    def of_linear(
        cls, x: T, weight: T, bias: T | None, down: T, down_bias: T | None, up: T, act: Iterable[T], key: str = ""
    ) -> Operands[T]:
        """From the arguments of `noble_fx::linear`."""
        return cls(x, (SiteOperands(weight, bias, down, down_bias, up, tuple(act)),), key)

    @classmethod
    def of_group(
        cls,
        x: T,
        weight: Sequence[T],
        bias: Sequence[T],
        down: Sequence[T],
        down_bias: Sequence[T],
        up: Sequence[T],
        act: Sequence[T],
        key: str = "",
    ) -> Operands[T]:
        """From the arguments of `noble_fx::linear_group`; σ's tensors are dealt out evenly."""
        absent: list[Any] = [None] * len(weight)
        fields = zip(weight, bias or absent, down, down_bias or absent, up, _dealt(act, len(weight)), strict=True)
        return cls(x, tuple(map(SiteOperands._make, fields)), key)

    @classmethod
    def of_node(cls, node: fx.Node) -> Operands[Any]:
        """From a node of either operator, whether its arguments are given by place or by name."""
        arguments: list[Any] = [*node.args, *(node.kwargs[name] for name in _NAMES[len(node.args) :])]
        return cls.of_group(*arguments) if node.target is LINEAR_GROUP else cls.of_linear(*arguments)

    @classmethod
    def from_flat(cls, flat: Sequence[T], count: int, key: str = "") -> Operands[T]:
        """From the flat order of `count` sites; the inverse of `flat`."""
        if count == 1:  # the path of every layer that is called by itself
            return cls(flat[0], (SiteOperands._make((*flat[1:_ACT], tuple(flat[_ACT:]))),), key)
        at = 1 + _FIELDS * count
        fields = [flat[start : start + count] for start in range(1, at, count)]
        return cls(flat[0], tuple(map(SiteOperands._make, zip(*fields, _dealt(flat[at:], count), strict=True))), key)

    # --- write -----------------------------------------------------------------------------------------------------

    def flat(self) -> list[T | None]:
        """Every operand, in the flat order."""
        *fields, acts = zip(*self.sites, strict=True)
        return [self.x, *chain.from_iterable(fields), *chain.from_iterable(acts)]

    def act(self) -> list[T]:
        """σ's tensors of the first site, then those of the next."""
        return list(chain.from_iterable(site.act for site in self.sites))

    def linear_args(self) -> tuple[Any, ...]:
        """The arguments of `noble_fx::linear`, for one site."""
        (site,) = self.sites
        return (self.x, *site[:_FIELDS], list(site.act), self.key)

    def group_args(self) -> tuple[Any, ...]:
        """The arguments of `noble_fx::linear_group`; raises `ValueError` where only some of the sites have a bias."""
        *fields, acts = zip(*self.sites, strict=True)
        present = [[operand for operand in field if operand is not None] for field in fields]
        if any(field and len(field) < len(self.sites) for field in present):
            raise ValueError("a group is all with a bias or all without")
        return (self.x, *present, list(chain.from_iterable(acts)), self.key)

    @property
    def target(self) -> Any:
        """The operator that takes them: `noble_fx::linear` for one site, `noble_fx::linear_group` for several."""
        return LINEAR if len(self.sites) == 1 else LINEAR_GROUP

    def node_args(self) -> tuple[Any, ...]:
        """The arguments of a node of `target`."""
        return self.linear_args() if len(self.sites) == 1 else self.group_args()

    # --- other operands --------------------------------------------------------------------------------------------

    def select(self, sites: Iterable[int]) -> Operands[T]:
        """x and these sites alone, in this order."""
        return Operands(self.x, tuple(self.sites[i] for i in sites), self.key)

    def split(self) -> list[Operands[T]]:
        """Each site by itself, with the same x."""
        return [Operands(self.x, (site,), self.key) for site in self.sites]

    @classmethod
    def join(cls, members: Sequence[Operands[T]]) -> Operands[T]:
        """The sites of all; x and the key are those of the first."""
        return cls(members[0].x, tuple(site for member in members for site in member.sites), members[0].key)

    def map(self, function: Callable[[T], S]) -> Operands[S]:
        """`function` of every operand that is there."""

        def optional(operand: T | None) -> Any:
            return None if operand is None else function(operand)

        def of_site(site: SiteOperands[T]) -> SiteOperands[S]:
            weight, bias, down, down_bias, up, act = site
            matrices = function(weight), optional(bias), function(down), optional(down_bias), function(up)
            return SiteOperands(*matrices, tuple(map(function, act)))

        return Operands(function(self.x), tuple(map(of_site, self.sites)), self.key)


def places(length: int, count: int, sites: Iterable[int]) -> list[int]:
    """Where in the flat order of `count` sites, `length` operands long, x and the operands of these `sites` stand."""
    every: Operands[Any] = Operands.from_flat(range(length), count)
    flat: list[Any] = every.select(sites).flat()
    return flat


def _dealt(act: Sequence[T], count: int) -> list[tuple[T, ...]]:
    each = len(act) // count
    return [tuple(act[start : start + each]) for start in range(0, count * each, each)] if each else [()] * count

"""What `compress` would do, as data and as a table: error against size, of every layer and of all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from noble_fx.bases.low_rank import LowRank
from noble_fx.compressing.allocation.base import DENSE, Candidate
from noble_fx.compressing.allocation.table import ALLOCATIONS
from noble_fx.errors import ConfigError
from noble_fx.sites.site import Site
from noble_fx.tables import NOTHING, as_text, group, plain, table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

SIZES = (0.9, 0.75, 0.6, 0.45, 0.3)  # of the dense parameters, at which errors are shown
_WIDTH = 140


@dataclass(frozen=True)
class PlannedSite:
    """One layer: `rank` 0 where it stays dense, and then `site.reason` says why; `error` of its output at that rank."""

    site: Site
    rank: int
    dense: int  # parameters as it is
    params: int  # parameters as planned
    error: float
    candidate: Candidate

    @property
    def curve(self) -> list[tuple[int, int, float]]:
        """(rank, parameters, relative error) at every rank that saves something."""
        one = self.candidate
        return [(rank, one.cost(rank), one.lost(rank) ** 0.5) for rank in one.ranks]

    def error_at(self, size: float) -> float | None:
        """The error at a share of its dense parameters; None where no rank is so small."""
        rank = self.candidate.within(size * self.dense)
        fits = rank != DENSE and self.candidate.cost(rank) <= size * self.dense
        return self.candidate.lost(rank) ** 0.5 if fits else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        facts = {"dense_params": self.dense, "planned_params": self.params, "error": self.error}
        curve = [{"rank": rank, "params": params, "error": error} for rank, params, error in self.curve]
        return {**self.site.to_dict(), **facts, "curve": curve}


@dataclass(frozen=True)
class CompressionPlan:
    """What `compress(..., dry_run=True)` returns; `str()` is a table, `to_dict()` plain JSON values."""

    method: str
    allocate: str
    rows: int  # of the calibration; 0 without one, where errors are those of the matrices themselves
    model_params: int
    entries: tuple[PlannedSite, ...]
    left_out: tuple[Site, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site: those with a rank, those that stay dense, and those that were not chosen."""
        return (*(entry.site for entry in self.entries), *self.left_out)

    @property
    def dense(self) -> int:
        """Parameters of the chosen layers as they are."""
        return sum(entry.dense for entry in self.entries)

    @property
    def params(self) -> int:
        """Parameters of the chosen layers as planned."""
        return sum(entry.params for entry in self.entries)

    @property
    def error(self) -> float:
        """The root mean square of the layers' errors: a measure to compare plans by, not the model's own loss."""
        return _rms([entry.error for entry in self.entries])

    def at(self, keep: float) -> tuple[int, float] | None:
        """(parameters of the chosen layers, error) at another budget; None where it cannot be met."""
        candidates = [entry.candidate for entry in self.entries]
        try:
            ranks = ALLOCATIONS[self.allocate](candidates, keep)
        except ConfigError:
            return None
        spent = sum(each.cost(ranks[each.name]) for each in candidates)
        return spent, _rms([each.lost(ranks[each.name]) ** 0.5 for each in candidates])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = ((keep, self.at(keep)) for keep in SIZES)
        curve = [{"keep": keep, "params": at[0], "error": at[1]} for keep, at in found if at is not None]
        facts = {"method": self.method, "allocate": self.allocate, "rows": self.rows, "model_params": self.model_params}
        sums = {"dense_params": self.dense, "planned_params": self.params, "error": self.error, "curve": curve}
        left_out = [site.to_dict() for site in self.left_out]
        return {**facts, **sums, "sites": [entry.to_dict() for entry in self.entries], "left_out": left_out}

    def __str__(self) -> str:
        return as_text(self, _WIDTH)

    def __rich__(self) -> Group:
        return group(*self._head(), "", self._layers(), "", self._sizes())

    def _head(self) -> list[Any]:
        of_what = f"of outputs on {self.rows:,} rows" if self.rows else "of the matrices alone, without data"
        after = self.model_params - self.dense + self.params
        count = sum(entry.rank != DENSE for entry in self.entries)
        share = f"{self.params / self.dense:.1%}" if self.dense else NOTHING
        return [
            plain(f"{count} of {len(self.entries)} chosen layers become two factors each, by {self.method!r}"),
            plain(f"parameters: {self.dense:,} → {self.params:,} ({share}); model: {self.model_params:,} → {after:,}"),
            plain(f"errors are relative, {of_what}; root mean square over the layers: {self.error:.3g}"),
        ]

    def _layers(self) -> Table:
        made = _right(table("layer", "role"), "K → N", "rank", "size", "error", *(f"at {size:.0%}" for size in SIZES))
        made.add_column("why not")
        for entry in self.entries:
            site = entry.site
            errors = [_number(entry.error_at(size)) for size in SIZES]
            rank = entry.rank or NOTHING
            shape, size = f"{site.in_features} → {site.out_features}", f"{entry.params / entry.dense:.0%}"
            reason = "" if entry.rank else site.reason
            cells = (site.fqn, site.role, shape, rank, size, _number(entry.error), *errors, reason)
            made.add_row(*map(plain, cells))
        return made

    def _sizes(self) -> Table:
        made = _right(table("all of them"), *(f"at {size:.0%}" for size in SIZES))
        found = [self.at(size) for size in SIZES]
        made.add_row("error", *(_number(at[1] if at else None) for at in found))
        made.add_row("model", *(f"{self._model_size(at[0]):.1%}" if at else NOTHING for at in found))
        return made

    def _model_size(self, params: int) -> float:
        return (self.model_params - self.dense + params) / self.model_params


def planned(site: Site, candidate: Candidate, rank: int, why_dense: str) -> PlannedSite:
    """A layer with the rank that was decided."""
    cost, error = candidate.cost(rank), candidate.lost(rank) ** 0.5
    if rank == DENSE:
        site = replace(site, selected=False, action="", reason=why_dense)
    else:
        factors = cost - candidate.extra
        site = replace(
            site, base=LowRank.kind, base_rank=rank, base_params=factors, base_row_flops=2 * factors, base_error=error
        )
    return PlannedSite(site, rank, candidate.dense, cost, error, candidate)


def _right(made: Table, *names: str) -> Table:
    for name in names:
        made.add_column(name, justify="right")
    return made


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _rms(values: Sequence[float]) -> float:
    return (sum(value**2 for value in values) / len(values)) ** 0.5 if values else 0.0

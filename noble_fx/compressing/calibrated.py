"""All chosen layers of a model at all ranks, from one run over the calibration; or from the matrices alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from noble_fx.compressing.allocation.base import Candidate
from noble_fx.compressing.calibration import Calibration
from noble_fx.compressing.gather import Sums, gather
from noble_fx.compressing.looking import looked_at
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.order import Order, first_run
from noble_fx.compressing.places import Place
from noble_fx.compressing.progress import Track
from noble_fx.compressing.solve import Solution, needed_rows, solve
from noble_fx.errors import ConfigError

NEVER_CALLED = "never called on the calibration, so nothing is known of its inputs"


@dataclass(frozen=True)
class Settings:
    """How layers are solved."""

    method: Method
    name: str  # of the method
    bias: bool  # whether a bias is fitted, and given to a layer without one
    round_to: int


@dataclass(frozen=True)
class Calibrated:
    """The layers that were solved, why others were not, the order in which the model calls them, and the rows."""

    solutions: Mapping[str, Solution]
    left: Mapping[str, str]
    order: Order
    rows: int

    def candidates(self, places: Sequence[Place], settings: Settings) -> list[Candidate]:
        """The solved layers as a budget sees them."""
        solved = self.solutions
        return [candidate_of(place, solved[place.name], settings) for place in places if place.name in solved]


def calibrated(
    model: nn.Module, places: Sequence[Place], calibration: Calibration | None, settings: Settings, track: Track
) -> Calibrated:
    """Solve every layer; raises `ConfigError` where the calibration cannot be run or has too few rows for any."""
    if calibration is None:
        done = track(places, "factorising", len(places))
        solutions = {place.name: solve(place, None, settings.method, False) for place in done}
        return Calibrated(solutions, {}, Order(tuple((place.name,) for place in places), True), 0)
    with looked_at(model):
        order = first_run(model, places, calibration.first())
        called = [place for place in places if place.name in order.names]
        if not called:
            raise ConfigError("the calibration calls none of the chosen layers; choose others with select=…")
        sums = gather(model, called, order, calibration, track, settings.method.needs_inputs)
    left = {place.name: NEVER_CALLED for place in places if place.name not in sums}
    enough = checked_rows(called, sums)
    left |= {place.name: _few(place, sums[place.name]) for place in called if place not in enough}
    done, rows = track(enough, "factorising", len(enough)), max(each.rows for each in sums.values())
    # Sums go as they are used: a model's are as large as its layers.
    solutions = {place.name: solve(place, sums.pop(place.name), settings.method, settings.bias) for place in done}
    return Calibrated(solutions, left, order, rows)


def checked_rows(places: Sequence[Place], sums: Mapping[str, Sums]) -> list[Place]:
    """The layers that have seen enough rows; raises `ConfigError` where none has."""
    enough = [place for place in places if sums[place.name].rows >= needed_rows(place)]
    if not enough:
        worst = max(places, key=needed_rows)
        raise ConfigError(
            f"too few calibration rows: {_few(worst, sums[worst.name])}; give more of them, several times as many are "
            "better"
        )
    return enough


def _few(place: Place, sums: Sums) -> str:
    return f"{place.name!r} has seen {sums.rows:,} rows and needs at least {needed_rows(place):,}"


def candidate_of(place: Place, solution: Solution, settings: Settings) -> Candidate:
    """A solved layer as a budget sees it."""
    site, factors = place.site, solution.factors
    extra = site.out_features if solution.fit is not None and settings.bias and place.bias is None else 0
    return Candidate(
        place.name,
        site.role,
        site.out_features,
        site.in_features,
        factors.shares,
        factors.spectrum,
        settings.round_to,
        extra,
    )

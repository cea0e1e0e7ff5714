"""Layer after layer: each is calibrated on what the layers before it give once they are compressed.

A stage is what is calibrated in one run over the data, up to its last layer: the layers that read one tensor, or all of
one repeated block. Ranks that share a budget were decided before, on the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from noble_fx.compressing.allocation.base import DENSE, Candidate
from noble_fx.compressing.calibrated import Settings, candidate_of, checked_rows
from noble_fx.compressing.calibration import Calibration
from noble_fx.compressing.gather import gather
from noble_fx.compressing.looking import looked_at
from noble_fx.compressing.order import Order
from noble_fx.compressing.places import Place
from noble_fx.compressing.plan import PlannedSite, planned
from noble_fx.compressing.progress import Track
from noble_fx.compressing.put import put
from noble_fx.compressing.solve import solve
from noble_fx.sites.blocks import repeated_blocks

Decide = Callable[[Candidate], tuple[int, str]]


def stages(model: nn.Module, order: Order, by_block: bool) -> list[list[str]]:
    """The names of the layers of each stage, in order."""
    if not by_block:
        return [list(group) for group in order.groups]
    blocks = sorted(repeated_blocks(model), key=len)  # the outermost first
    found: dict[str, list[str]] = {}
    for name in order.names:
        block = next((block for block in blocks if name.startswith(f"{block}.")), name)
        found.setdefault(block, []).append(name)
    return list(found.values())


def compress_in_sequence(
    model: nn.Module,
    places: Sequence[Place],
    original: tuple[nn.Module, Sequence[Place]],
    order: Order,
    by_block: bool,
    calibration: Calibration,
    settings: Settings,
    decide: Decide,
    track: Track,
) -> list[PlannedSite]:
    """Compress the layers of `model` in place; `decide` gives the rank of each once its curve is known."""
    by_name, method, done = {place.name: place for place in places}, settings.method, []
    listed = stages(model, order, by_block)
    for at, names in enumerate(listed):
        stage = [by_name[each] for each in names if each in by_name]
        if not stage:
            continue
        target = None if method.mix is None else (*original, method.mix)
        with looked_at(model), looked_at(original[0]):
            text = f"stage {at + 1} of {len(listed)}"
            sums = gather(model, stage, order, calibration, track, method.needs_inputs, target, text)
        for place in checked_rows(stage, sums):
            solution = solve(place, sums.pop(place.name), method, settings.bias)
            candidate = candidate_of(place, solution, settings)
            rank, why = decide(candidate)
            done.append(planned(place.site, candidate, rank, why))
            if rank != DENSE:
                put(place, solution.at(place, rank), settings.name)
    return done

"""Sums over what reaches each layer while a model runs on its calibration, a batch at a time.

    v = [x | t … | 1]       of layers that read one tensor x together: each with the features t of its own branch
    v = [W x | t | 1]       of one layer, where its outputs are fewer numbers to multiply and the method asks no more

Nothing of a batch stays but its sums, so their number has no bound. Where every layer is called once the run ends at
the last of them: no output head is computed for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.compressing.calibration import Batch, Calibration, run
from noble_fx.compressing.moments import Moments
from noble_fx.compressing.order import Input, Order, seen
from noble_fx.compressing.places import Place
from noble_fx.compressing.progress import Track
from noble_fx.errors import ConfigError
from noble_fx.torch_state import without_autocast
from noble_fx.torch_versions import uncompiled


class _Reached(BaseException):
    """The last layer was reached: the rest of the model need not run. No model catches it by accident."""


@dataclass
class Group:
    """Layers whose rows are multiplied together."""

    places: list[Place]
    of_outputs: bool
    moments: Moments = field(default_factory=Moments)
    last: Input | None = None  # what the first of them read
    originals: list[Tensor] = field(default_factory=list)  # what the original model gave the first of them, in order

    def features(self, x: Tensor) -> Tensor:
        """v [rows, d] of x [rows, K], in float32 or better."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        z = F.linear(x.to(dtype), self.places[0].weight.to(dtype)) if self.of_outputs else x.to(dtype)
        branches = [place.branch for place in self.places if place.branch is not None]
        parts: list[Any] = [branch.before_up(x.to(branch.dtype)) for branch in branches]
        return torch.cat([z, *(part.to(dtype) for part in parts), z.new_ones(len(z), 1)], 1)

    def part(self, place: Place, square: Tensor) -> Tensor:
        """What is one layer's of a sum over v [d, d]."""
        width = place.site.out_features if self.of_outputs else place.site.in_features
        start = width + sum(each.free for each in self.places[: self.places.index(place)])
        at = torch.tensor([*range(width), *range(start, start + place.free), len(square) - 1], device=square.device)
        return square if len(at) == len(square) else square[at][:, at]


@dataclass(frozen=True)
class Sums:
    """What is known of one layer; made when it is asked for, since a model has many and they are large."""

    group: Group
    place: Place

    @property
    def sums(self) -> Tensor:
        """Σ vᵀv of v = [z | t | 1], z being x or (`of_outputs`) W x."""
        return self.group.part(self.place, self.group.moments.sums)

    @property
    def cross(self) -> Tensor | None:
        """Σ v̂ᵀv with v̂ of the target's inputs, where there is another target."""
        cross = self.group.moments.cross
        return None if cross is None else self.group.part(self.place, cross)

    @property
    def of_outputs(self) -> bool:
        return self.group.of_outputs

    @property
    def rows(self) -> int:
        return self.group.moments.rows


def gather(
    model: nn.Module,
    places: Sequence[Place],
    order: Order,
    calibration: Calibration,
    track: Track,
    needs_inputs: bool = True,
    original: tuple[nn.Module, Sequence[Place], float] | None = None,
    text: str = "calibrating",
) -> dict[str, Sums]:
    """The sums of each of `places`, which the model calls in this `order`; raises `ConfigError`.

    `original`: the model before it was compressed, its layers of the same names, and the share β of their inputs in
    the target's.
    """
    groups = _groups(places, order, needs_inputs or original is not None)
    of = {place.name: group for group in groups for place in group.places}
    calls: Counter[str] = Counter()
    stop_at = groups[-1].places[-1].name if order.once else ""

    def see(place: Place, x: Tensor) -> None:
        calls[place.name] += 1
        group = of[place.name]
        if place is group.places[0]:
            group.last = Input(x)
            with without_autocast(x.device.type):
                v = group.features(rows_of(x))
                group.moments.add(v, _partners(group, v, original))
            if not group.moments.finite:
                raise ConfigError(
                    f"the input of {place.name!r} is not finite in {here}; leave that out of the calibration, or the "
                    "layer out with exclude=…"
                )
        elif group.last is None or not group.last.same(x):
            raise _other_input(place, group)
        if place.name == stop_at:
            raise _Reached

    with torch.no_grad(), uncompiled(), seen([place for group in groups for place in group.places], see):
        for batch in track(calibration, text, len(calibration)):
            here = batch.name
            if original is not None:
                _run_original(original, groups, batch, order.once)
            _run_until_reached(model, batch)
    for group in groups:
        for place in group.places:
            if calls[place.name] != calls[group.places[0].name]:
                raise _other_input(place, group)
    return {place.name: Sums(group, place) for group in groups for place in group.places}


def rows_of(x: Tensor) -> Tensor:
    """x [.., K] as rows [n, K]."""
    if x.is_nested:
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in x.unbind()])
    return x.reshape(-1, x.shape[-1])


def _groups(places: Sequence[Place], order: Order, needs_inputs: bool) -> list[Group]:
    """Which layers are summed together: by their input, or each by its outputs where that is less work."""
    by_name, found = {place.name: place for place in places}, []
    for names in order.groups:
        together = [by_name[name] for name in names if name in by_name]
        if not together:
            continue
        work = sum(place.site.out_features**2 for place in together)
        if needs_inputs or work >= together[0].site.in_features ** 2:
            found.append(Group(together, of_outputs=False))
        else:
            found += [Group([place], of_outputs=True) for place in together]
    return found


def _other_input(place: Place, group: Group) -> ConfigError:
    return ConfigError(
        f"{place.name!r} read the input of {group.places[0].name!r} in the first batch and another one later; compress "
        "one of the two at a time, the other one left out with exclude=…"
    )


def _run_until_reached(model: nn.Module, batch: Batch) -> None:
    with suppress(_Reached):
        run(model, batch)


def _run_original(
    original: tuple[nn.Module, Sequence[Place], float], groups: list[Group], batch: Batch, once: bool
) -> None:
    """Keep what the original model gives the first layer of each group in this batch."""
    model, places, _ = original
    first = {group.places[0].name: group for group in groups}
    for group in groups:
        group.originals.clear()

    def keep(place: Place, x: Tensor) -> None:
        first[place.name].originals.append(rows_of(x))
        if once and place.name == groups[-1].places[0].name:
            raise _Reached

    with seen([place for place in places if place.name in first], keep):
        _run_until_reached(model, batch)


def _partners(group: Group, v: Tensor, original: Any) -> Tensor | None:
    """v̂ [rows, d]: the mixture of v and of the same features of the original's input."""
    if original is None:
        return None
    beta, given = original[2], group.originals.pop(0) if group.originals else None
    if given is None or len(given) != len(v):
        raise ConfigError(
            f"the compressed model gives {group.places[0].name!r} other rows than the original did, so its target is "
            "not known; use method='activations', or leave the layer out with exclude=…"
        )
    return v.lerp(group.features(given), beta)

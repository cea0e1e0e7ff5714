"""`noble_fx.compress`: a copy of a trained model in which chosen weights are two thin ones.

    y = x Wᵀ + b   ->   y = (x Bᵀ) Aᵀ + b'        A [N, k]   B [k, K]   k < N K / (N + K)

Of all weights of rank k the one with the least error of the layer's output on calibration rows, together with the best
bias, and beside a branch with the best U.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.attach.copying import deep_copy
from noble_fx.attach.model_config import note
from noble_fx.attach.switched_off import is_off
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.captures.base import check_model
from noble_fx.captures.table import captured
from noble_fx.compressing.allocation.base import DENSE
from noble_fx.compressing.budget import Budget, Decision
from noble_fx.compressing.calibrated import Calibrated, Settings, calibrated
from noble_fx.compressing.calibration import Calibration
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.methods.table import method_of
from noble_fx.compressing.places import Place, find_places
from noble_fx.compressing.plan import CompressionPlan, PlannedSite, planned
from noble_fx.compressing.progress import Track, progress_bar
from noble_fx.compressing.put import put
from noble_fx.compressing.sequence import compress_in_sequence
from noble_fx.errors import CaptureError, ConfigError, NobleError, check_flag, printable, shown
from noble_fx.sites.site import Site
from noble_fx.transform import keep_from_fast_path


def compress(
    model: nn.Module,
    calibration: Any = None,
    *,
    keep: float | None = None,
    rank: int | float | Mapping[str, int | float] | None = None,
    error: float | None = None,
    select: Any = "auto",
    exclude: Any = None,
    method: str | Method = "activations",
    allocate: str = "auto",
    sequential: bool | str = False,
    bias: bool = True,
    round_to: int = 8,
    dry_run: bool = False,
    progress: bool = True,
) -> Any:
    """A copy of `model` whose chosen layers have two thin weights in the place of one; `model` itself is unchanged.

    `calibration` are inputs as the model will see them: a tensor, a tuple or dictionary of inputs, or any number of
    these in a list or loader; the model runs on them in eval mode. Exactly one says how far: `keep`, the share of the
    chosen layers' parameters that stays; `rank`, of all or by regular expression; `error`, of each layer's output.
    `sequential=True` calibrates each layer behind the compressed ones, "block" each repeated block, in a run for each.
    `dry_run` returns a `CompressionPlan`, error against size of every layer. Raises `ConfigError` or `CaptureError`.
    """
    name, chosen = method_of(method)
    _check_flags(bias=bias, dry_run=dry_run, progress=progress)
    if sequential not in (False, True, "block"):
        raise ConfigError(f"sequential={shown(sequential)} must be False, True or 'block'")
    budget = Budget.of(keep, rank, error, allocate, round_to, chosen.allocation, none=dry_run)
    given = _given_calibration(calibration, name, chosen, sequential)
    _check(model)
    settings = Settings(chosen, bias, budget.round_to)
    work = model if dry_run else _copy(model)
    places, sites = find_places(work, select, exclude)
    check_unwrapped(model, "change", [place.name for place in places])
    with progress_bar(progress) as track:
        known = calibrated(work, places, given, settings, track)
        plan = _plan(model, places, sites, known, budget, settings, name)
        if dry_run:
            return plan
        if sequential or chosen.mix is not None:
            assert given is not None
            entries = _in_sequence(model, work, places, known, plan, budget, settings, given, sequential, name, track)
            plan = replace(plan, entries=tuple(entries))
        else:
            _put_all(places, known, plan, name)
    _check_done(plan)
    keep_from_fast_path(work)
    note(work)
    return work


def _plan(
    model: nn.Module,
    places: Sequence[Place],
    sites: Sequence[Site],
    known: Calibrated,
    budget: Budget,
    settings: Settings,
    name: str,
) -> CompressionPlan:
    candidates = known.candidates(places, settings)
    looking = budget.keep is None and budget.rank is None and budget.error is None
    decided = {each.name: (DENSE, "no budget was given") for each in candidates} if looking else None
    decided = decided or budget.decide(candidates)
    by_name = {site.fqn: site for site in sites}
    entries = tuple(planned(by_name[each.name], each, *decided[each.name]) for each in candidates)
    left = [replace(site, selected=False, action="", reason=known.left[site.fqn]) for site in _left(sites, known)]
    others = [site for site in sites if not site.selected]
    params = sum(parameter.numel() for parameter in model.parameters())
    plan = CompressionPlan(name, budget.allocate, known.rows, params, entries, (*left, *others))
    if not looking:
        _check_done(plan)
    return plan


def _left(sites: Sequence[Site], known: Calibrated) -> list[Site]:
    return [site for site in sites if site.fqn in known.left]


def _put_all(places: Sequence[Place], known: Calibrated, plan: CompressionPlan, name: str) -> None:
    by_name = {place.name: place for place in places}
    for entry in plan.entries:
        if entry.rank != DENSE:
            place = by_name[entry.site.fqn]
            put(place, known.solutions[place.name].at(place, entry.rank), name)


def _in_sequence(
    model: nn.Module,
    work: nn.Module,
    places: Sequence[Place],
    known: Calibrated,
    plan: CompressionPlan,
    budget: Budget,
    settings: Settings,
    given: Calibration,
    sequential: bool | str,
    name: str,
    track: Track,
) -> list[PlannedSite]:
    """Compress the copy stage by stage; a budget that all share was spent on the curves of the model as it was."""
    decided: dict[str, Decision] = {entry.site.fqn: (entry.rank, entry.site.reason) for entry in plan.entries}

    def decide(candidate: Any) -> Decision:
        return decided[candidate.name] if budget.by_budget else budget.decide_one(candidate)

    # A layer that stays dense by a shared budget needs no run; one that an error decides may change its mind.
    open_places = [place for place in places if place.name in decided]
    if budget.by_budget:
        open_places = [place for place in open_places if decided[place.name][0] != DENSE]
    names = {place.name for place in open_places}
    originals = [replace(place, layer=model.get_submodule(place.name)) for place in open_places]
    order, by_block = known.order, sequential == "block"
    done = compress_in_sequence(
        work, open_places, (model, originals), order, by_block, given, settings, decide, name, track
    )
    return [*done, *(entry for entry in plan.entries if entry.site.fqn not in names)]


# --- what is refused -------------------------------------------------------------------------------------------------


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        check_flag(name, value, ConfigError)


def _given_calibration(calibration: Any, name: str, method: Method, sequential: bool | str) -> Calibration | None:
    if calibration is None and (method.needs_data or sequential):
        why = "sequential=… calibrates each layer anew" if sequential else f"method={name!r} needs calibration rows"
        raise ConfigError(
            f"{why}: pass inputs of the model, as many rows as its widest layer has features or more; "
            "method='svd' and 'welore' look at the weights alone"
        )
    if calibration is None:
        return None
    given = Calibration(calibration)
    return given.repeatable() if sequential or method.mix is not None else given


def _check(model: nn.Module) -> None:
    """Refuse a model that cannot be compressed as it is."""
    check_model(model)
    for capture, _ in captured(model):
        raise CaptureError(
            f"the model runs a graph (capture={type(capture).__name__.lower()!r}), which reads the weights that it was "
            "made of; compress the model before it is captured"
        )
    for fqn, branch in named_branches(model).items():
        if is_off(branch):
            raise ConfigError(f"the branch at {fqn!r} is off: leave noble_fx.disabled(model) first, then compress")


def _copy(model: nn.Module) -> nn.Module:
    try:
        return deep_copy(model, {})
    except NobleError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the model cannot be copied, and compress gives a copy: {type(error).__name__}: {printable(error)}"
        ) from error


def _check_done(plan: CompressionPlan) -> None:
    """Raise `ConfigError` where no layer is left that would be smaller."""
    if not any(entry.rank != DENSE for entry in plan.entries):
        reasons = dict.fromkeys(f"{entry.site.fqn!r}: {entry.site.reason}" for entry in plan.entries)
        raise ConfigError(f"nothing would be compressed; {'; '.join(list(reasons)[:4])}")

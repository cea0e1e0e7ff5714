"""`noble_fx.compress`: a copy of a trained model in which chosen weights are two thin ones.

    y = x Wᵀ + b   ->   y = (x Bᵀ) Aᵀ + b'        A [N, k]   B [k, K]   k < N K / (N + K)

Of all weights of rank k the one with the least error of the layer's output on calibration rows, together with the best
bias, and beside a branch with the best U.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from noble_fx.attach.adapters import check_none
from noble_fx.attach.attach import named_branches
from noble_fx.attach.copying import copied_for
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.switched_off import is_off
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.captures.base import check_model
from noble_fx.captures.table import captured
from noble_fx.compressing.allocation.base import DENSE, Candidate
from noble_fx.compressing.budget import Budget, Decision
from noble_fx.compressing.calibrated import Calibrated, Settings, calibrated
from noble_fx.compressing.calibration import Calibration
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.methods.table import method_of
from noble_fx.compressing.places import Place, find_places
from noble_fx.compressing.plan import CompressionPlan, planned
from noble_fx.compressing.progress import Track, progress_bar
from noble_fx.compressing.put import put
from noble_fx.compressing.sequence import compress_in_sequence
from noble_fx.compressing.timing import Stopwatch
from noble_fx.errors import CaptureError, ConfigError, check_flag, shown
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
    faster_at: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> Any:
    """A copy of `model` whose chosen layers have two thin weights in the place of one; `model` itself is unchanged.

    `calibration` are inputs as the model will see them: a tensor, a tuple or dictionary of inputs, or any number of
    these in a list or loader; the model runs on them in eval mode. Exactly one says how far: `keep`, the share of the
    chosen layers' parameters that stays; `rank`, of all or by regular expression; `error`, of each layer's output.
    With `faster_at=16` a layer that two thin products would not make faster at 16 rows, measured here, stays dense.
    `sequential=True` calibrates each layer behind the compressed ones, "block" each repeated block, in a run for each.
    `dry_run` returns a `CompressionPlan`, error against size of every layer. Raises `ConfigError` or `CaptureError`.
    """
    name, chosen = method_of(method)
    _check_flags(bias=bias, dry_run=dry_run, progress=progress)
    if sequential not in (False, True, "block"):
        raise ConfigError(f"sequential={shown(sequential)} must be False, True or 'block'")
    if faster_at is not None and (isinstance(faster_at, bool) or not isinstance(faster_at, int) or faster_at < 1):
        raise ConfigError(f"faster_at={shown(faster_at)} must be None or a number of rows ≥ 1")
    budget = Budget.of(keep, rank, error, allocate, round_to, chosen.allocation, none=dry_run)
    given = _given_calibration(calibration, name, chosen, sequential)
    _check(model)
    check_none(model, "noble_fx.compress")
    settings = Settings(chosen, name, bias, budget.round_to)
    # The model is run, to be looked at: in a dry run, and for a target of its own.
    with restored_on_error(model) as before, progress_bar(progress) as track:
        before.keep(model.buffers())
        work = model if dry_run else copied_for(model, "compress")
        places, sites = find_places(work, select, exclude)
        check_unwrapped(model, "change", [place.name for place in places])
        watch = Stopwatch(places, faster_at) if faster_at is not None else None
        job = _Job(model, work, places, sites, budget, settings, track, watch)
        known = calibrated(work, places, given, settings, track)
        plan = _plan(job, known)
        if dry_run:
            return plan
        if given is not None and (sequential or chosen.mix is not None):
            _check_done(_compress_in_sequence(job, known, plan, given, sequential == "block"))
        else:
            _compress_at_once(job, known, plan)
        keep_from_fast_path(work)
        note(work)
        return work


@dataclass(frozen=True)
class _Job:
    """One call: the model, what is changed of it (its copy), the chosen layers and all sites, and how."""

    model: nn.Module
    work: nn.Module
    places: Sequence[Place]
    sites: Sequence[Site]
    budget: Budget
    settings: Settings
    track: Track
    watch: Stopwatch | None

    def timed(self, candidate: Candidate, decided: Decision) -> Decision:
        """A decision, with a look at the clock where that was asked for."""
        return decided if self.watch is None else self.watch.check(candidate, decided)


def _plan(job: _Job, known: Calibrated) -> CompressionPlan:
    candidates = known.candidates(job.places, job.settings)
    if job.budget.is_none:
        decided: dict[str, Decision] = {each.name: (DENSE, "no budget was given") for each in candidates}
    else:
        wanted = job.budget.decide(candidates)
        decided = {each.name: job.timed(each, wanted[each.name]) for each in candidates}
    by_name = {site.fqn: site for site in job.sites}
    entries = tuple(planned(by_name[each.name], each, *decided[each.name]) for each in candidates)
    left = [
        replace(by_name[name], selected=False, action="", reason=reason) for name, reason in sorted(known.left.items())
    ]
    others = [site for site in job.sites if not site.selected]
    params = sum(parameter.numel() for parameter in job.model.parameters())
    name, allocate = job.settings.name, job.budget.allocate
    plan = CompressionPlan(name, allocate, known.rows, params, entries, (*left, *others))
    if not job.budget.is_none:
        _check_done(plan)
    return plan


def _compress_at_once(job: _Job, known: Calibrated, plan: CompressionPlan) -> None:
    by_name = {place.name: place for place in job.places}
    for entry in plan.entries:
        if entry.rank != DENSE:
            place = by_name[entry.site.fqn]
            put(place, known.solutions[place.name].at(place, entry.rank), job.settings.name)


def _compress_in_sequence(
    job: _Job, known: Calibrated, plan: CompressionPlan, given: Calibration, by_block: bool
) -> CompressionPlan:
    """Compress the copy stage by stage; a budget that all share was spent on the curves of the model as it was."""
    decided: dict[str, Decision] = {entry.site.fqn: (entry.rank, entry.site.reason) for entry in plan.entries}

    def decide(candidate: Candidate) -> Decision:
        if job.budget.by_budget:
            return decided[candidate.name]
        return job.timed(candidate, job.budget.decide_one(candidate))

    # A layer that a shared budget leaves dense needs no run; one that an error decides may change its mind.
    kept_dense = {name for name, (rank, _) in decided.items() if rank == DENSE and job.budget.by_budget}
    places = [place for place in job.places if place.name in decided and place.name not in kept_dense]
    originals = [Place.of(place.site, job.model.get_submodule(place.name)) for place in places]
    done = compress_in_sequence(
        job.work, places, (job.model, originals), known.order, by_block, given, job.settings, decide, job.track
    )
    return replace(plan, entries=(*done, *(entry for entry in plan.entries if entry.site.fqn in kept_dense)))


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


def _check_done(plan: CompressionPlan) -> None:
    """Raise `ConfigError` where no layer is left that would be smaller."""
    if not any(entry.rank != DENSE for entry in plan.entries):
        reasons = dict.fromkeys(f"{entry.site.fqn!r}: {entry.site.reason}" for entry in plan.entries)
        raise ConfigError(f"nothing would be compressed; {'; '.join(list(reasons)[:4])}")

"""What to do instead, having tried it on this very model: no refusal sends a user to another refusal.

A dead end is an error that says why not and leaves open what works (`NobleError.dead_end`). The settings nearest to the
ones asked for are tried one by one, and the first that choose a layer are the advice; where none do, the error says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from noble_fx.captures.base import Capture, Examples, Plan
from noble_fx.captures.table import asked
from noble_fx.config import NobleConfig
from noble_fx.errors import CaptureError, NobleError
from noble_fx.sites.block_maps import at_scope
from noble_fx.sites.site import BLOCK

WITHOUT_EXAMPLES = {"example_inputs": None, "example_kwargs": None, "dynamic_shapes": None}


def advised(error: NobleError, model: nn.Module, config: NobleConfig, examples: Examples) -> NobleError:
    """The same error with what works for this model in its text, and as arguments of `transform` in `advice`."""
    tried = []
    for capture, settings in _changes(error, model, config, examples):
        given = examples if capture.takes_examples else Examples()
        count = _chosen(capture, model, config.replace(**settings), given)
        left_out = WITHOUT_EXAMPLES if examples and not given else {}
        parts = [f"{name}={value!r}" for name, value in settings.items()] + ["no example inputs"] * bool(left_out)
        if count:
            text = f"{error}. What works for this model: {', '.join(parts)} ({count} layer{'s' * (count > 1)})"
            return type(error)(text).advising(**settings, **left_out)
        tried.append(" and ".join(parts))
    if not examples and config.capture != "export":
        tried.append("not capture='export', which takes example_inputs")
    listed = f" (tried: {'; '.join(tried)})" if tried else ""
    return type(error)(f"{error}. Nothing else was found to work for this model{listed}")


def _changes(
    error: NobleError, model: nn.Module, config: NobleConfig, examples: Examples
) -> Iterator[tuple[Capture, dict[str, Any]]]:
    """Captures and settings to try, those that change least first."""
    (name, current), *_ = asked(config.capture)
    others = [each for each in ("modules", "export") if each != name and (each == "modules" or examples)]
    changes = list(_selections(model, config))
    if not isinstance(error, CaptureError):  # the capture holds the model: it was asked for what it cannot choose
        yield from ((current, change) for change in changes if change or (examples and not current.takes_examples))
    for change in changes:
        yield from ((capture, {"capture": other, **change}) for other in others for _, capture in asked(other))


def _selections(model: nn.Module, config: NobleConfig) -> Iterator[dict[str, Any]]:
    yield {}
    yield from [{"scope": "linear"}] * (config.scope == BLOCK)
    wider = [] if config.select == "all" else [{"select": "all"}]
    yield from wider
    rank = _largest_rank(model, config)
    if rank and isinstance(config.rank, int) and config.rank > rank:
        yield from ({**change, "rank": rank} for change in ({}, *wider))
    if config.exclude is not None:
        yield {"exclude": None}


def _largest_rank(model: nn.Module, config: NobleConfig) -> int:
    """The largest rank that some layer or block of the model takes, by their shapes; 0 where there is none."""
    (_, capture), *_ = asked("modules")
    maps = at_scope(model, capture.maps(model), config.scope)
    sites = [linear_map.site for linear_map in maps if not linear_map.obstacle]
    return max((min(site.in_features, site.out_features) - 1 for site in sites), default=0)


def _chosen(capture: Capture, model: nn.Module, config: NobleConfig, examples: Examples) -> int:
    """How many layers a transform would choose; 0 where it is refused."""
    try:
        plan = capture.plan(model, config, examples)
    except NobleError:
        return 0
    return len(plan.selected) if isinstance(plan, Plan) else 0

"""The numbers to look at while branches are trained, as one flat dictionary for any logger.

    noble/<site>/share             |branch(x)| / |y| of what `watching` saw
    noble/<site>/moved/frequency   how far ω is from where it started, root mean square over channels; so for phase
    noble/<site>/grad/<role>       norm of the gradients there are: down, up, mixer, frequency, phase, …; "all" of them
    noble/<site>/norm/<role>       norm of the parameters
    noble/total/…                  the same over all sites; beside the roles "base", everything that is no branch
    noble/lr/<role>                the rate in the optimizer, the largest where sites have several; so for "base"

What there is nothing of has no key: no gradient where a parameter is frozen or backward has not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from noble_fx.errors import ConfigError, check_flag, shown
from noble_fx.layers.quantized import is_frozen
from noble_fx.torch_versions import shapes_before_sharding
from noble_fx.training.group_rates import rates_by_role, warn_of_rates
from noble_fx.training.looking.norms import floats, norm
from noble_fx.training.looking.origin import moved
from noble_fx.training.looking.places import Place, places
from noble_fx.training.looking.stats_table import Stats
from noble_fx.training.looking.watching import Seen

SUMMED = ("grad", "norm")  # what has an "all" over its roles
BASE = "base"


class _Part(NamedTuple):
    """A tensor that counts towards the number `what` of a role at a site."""

    site: str
    what: str
    role: str
    tensor: Tensor


def stats(model: nn.Module, optimizer: Any = None, seen: Seen | None = None, per_site: bool = True) -> Stats:
    """The numbers above, by key; `print(stats)` shows a table. Call it after backward, before gradients are cleared.

    `optimizer`: one, or several, for the rates; warns once where a scheduler has made lr / lr_scale unequal, and where
    branches are in no group. `seen`: what `watching` yielded, for the shares. `per_site=False` gives the sums alone.
    Of sharded parameters every rank must call it. Raises `ConfigError` for a model without branches or values, and for
    one in FSDP1 outside of `summon_full_params`.
    """
    check_flag("per_site", per_site, ConfigError)
    if not (seen is None or isinstance(seen, Seen)):
        raise ConfigError(f"seen={shown(seen)} must be what `with noble_fx.watching(model) as seen:` gives")
    if seen is not None and not seen.is_of(model):
        raise ConfigError("seen is of another model; give stats the model that noble_fx.watching was given")
    sites = places(model)
    _check_values(model, sites)
    numbers = _numbers([*_parts_of_branches(sites), *_parts_of_base(model, sites)])
    shares = {} if seen is None else {**seen.shares, **({"total": seen.share} if seen.shares else {})}
    found: dict[str, float] = {}
    for site in (*(place.site for place in sites if per_site), "total"):
        found |= {f"noble/{site}/share": shares[site]} if site in shares else {}
        found |= {f"noble/{site}/{name}": value for name, value in numbers.get(site, {}).items()}
    if optimizer is not None:
        roles = {id(p): role for place in sites for role, p in _parameters(place)}
        found |= {f"noble/lr/{role}": rate for role, rate in rates_by_role(optimizer, roles).items()}
        learning = [p for place in sites for _, p in _parameters(place) if p.requires_grad]
        warn_of_rates(optimizer, learning)
    return Stats(found)


def _parameters(place: Place) -> list[tuple[str, nn.Parameter]]:
    return [(role, parameter) for branch in place.branches for role, parameter, _ in branch.parameter_roles()]


def _check_values(model: nn.Module, sites: list[Place]) -> None:
    shapes = shapes_before_sharding(model)
    for place in sites:
        for _, parameter in _parameters(place):
            if parameter.is_meta:
                raise ConfigError(
                    f"the branch at {place.site!r} is on the meta device and has no values yet; model.to_empty(...), "
                    "then noble_fx.reset_branches(model) or load a checkpoint"
                )
            if shapes.get(id(parameter), parameter.shape) != parameter.shape:
                raise ConfigError(
                    "the model is in FSDP1, and each rank has a part of its tensors; call stats inside "
                    "FullyShardedDataParallel.summon_full_params(model, with_grads=True), or wrap by fully_shard"
                )


def _parts_of_branches(sites: list[Place]) -> list[_Part]:
    parts = []
    for place in sites:
        parts += [_Part(place.site, "moved", *each) for branch in place.branches for each in moved(branch)]
        for role, parameter in _parameters(place):
            if parameter.grad is not None and parameter.requires_grad:
                parts.append(_Part(place.site, "grad", role, parameter.grad))
            parts.append(_Part(place.site, "norm", role, parameter))
    return parts


def _parts_of_base(model: nn.Module, sites: list[Place]) -> list[_Part]:
    own = {id(parameter) for place in sites for branch in place.branches for parameter in branch.parameters()}
    base = [parameter for parameter in model.parameters() if id(parameter) not in own]
    gradients = [p.grad for p in base if p.grad is not None and p.requires_grad]
    return [
        *(_Part("total", "grad", BASE, gradient) for gradient in gradients),
        *(_Part("total", "norm", BASE, p) for p in base if _is_counted(p)),
    ]


def _is_counted(parameter: nn.Parameter) -> bool:
    return not parameter.is_meta and parameter.is_floating_point() and not is_frozen(parameter)


def _numbers(parts: list[_Part]) -> dict[str, dict[str, float]]:
    """Site, then "what/role", of every number that is made of these parts."""
    norms = floats([norm([part.tensor]) for part in parts])
    squares: dict[tuple[str, str, str], list[float]] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for part, value in zip(parts, norms, strict=True):
        for key in _keys(part):
            squares.setdefault(key, []).append(value)
            counts[key] = counts.get(key, 0) + part.tensor.numel()
    found: dict[str, dict[str, float]] = {}
    for key in sorted(squares, key=lambda key: ("moved", "grad", "norm").index(key[1])):
        site, what, role = key
        root = math.hypot(*squares[key])
        value = root / math.sqrt(counts[key]) if what == "moved" else root
        found.setdefault(site, {})[f"{what}/{role}"] = value
    return found


def _keys(part: _Part) -> Iterable[tuple[str, str, str]]:
    """The numbers that a part counts towards."""
    sites = dict.fromkeys((part.site, "total"))
    roles = ["all", part.role] if part.what in SUMMED and part.role != BASE else [part.role]
    return [(site, part.what, role) for site in sites for role in roles]

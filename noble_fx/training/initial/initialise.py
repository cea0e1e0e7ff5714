"""Linear branches start from what their layers are, or from what a gradient says, instead of from a draw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.restore import restored_on_error
from noble_fx.branches.base import Branch
from noble_fx.branches.own_tensors import more_than_its_tensors
from noble_fx.errors import ConfigError, Refusal, nearest, shown
from noble_fx.layers.registry import row_of
from noble_fx.layers.weights import why_unsuitable
from noble_fx.sites.site import Site
from noble_fx.training.changing.running import Running, running
from noble_fx.training.initial.cores import core_of
from noble_fx.training.initial.gradients import Loss, summed_gradients
from noble_fx.training.initial.methods import METHODS, Method
from noble_fx.wrappers import own_name

_REMEDIES = {
    "": "a linear branch without anything between D and U: transform(model, act='identity', …)",
    "core": "a matrix between D and U: transform(model, act=noble_fx.training.initial.core, …)",
    "diagonal": "a diagonal between D and U: transform(model, act=noble_fx.training.initial.diagonal, …)",
}


@dataclass(frozen=True)
class Start:
    """What one branch started from, which of its tensors learn, and whether the layer's result is as without it."""

    fqn: str
    method: str
    learns: tuple[str, ...]
    keeps: bool
    absorbed: bool = False  # whether W was changed to make up for it: no method here does


@dataclass(frozen=True)
class _Parts:
    down: nn.Parameter
    up: nn.Parameter
    between: nn.Parameter | None = None
    bias: nn.Parameter | None = None  # d, which becomes zero
    scale: float = 1.0


def initialise(
    model: nn.Module, method: str, loss: Loss | None = None, batches: Iterable[Any] = (), lr: float | None = None
) -> list[Start]:
    """Start every linear branch by `method`, in place; returns what was done, a branch an entry.

    `method`: "svd", "tiled" (σ the identity), "orthonormal", "gradient" (`act=core`), "ldu" (`act=diagonal`); what does
    not learn by it is frozen, so build the optimizer afterwards. "gradient" takes `loss(model, batch)`, `batches` and
    the rate `lr` of the one step that the model starts away. W is never changed. Raises `ConfigError` for a branch that
    the method is not for, and what `set_rank` raises; the model is then as it was.
    """
    if method not in METHODS:
        raise ConfigError(
            f"method={shown(method)} is unknown{nearest(str(method), METHODS)}; known: {', '.join(METHODS)}"
        )
    how, found = METHODS[method], running(model)
    _check_arguments(how, method, loss, lr)
    places = {own_name(site.fqn, found.model): site for site in found.selected}
    parts = {name: _parts(name, found.branches(site)[0], method, how) for name, site in places.items()}
    weights = {name: _weight(found, name, site) for name, site in places.items()}
    sums: dict[str, Tensor] = {}
    if how.of_gradient:
        assert loss is not None
        sums = summed_gradients(found.model, weights, loss, batches)
    done = []
    with restored_on_error(found.model) as before, torch.no_grad():
        before.keep(parameter for site in places.values() for parameter in found.branches(site)[0].parameters())
        for name, site in places.items():
            source = -float(lr or 0) * sums[name].sign() if how.of_gradient else weights[name]
            _fill(name, parts[name], how, _lying(found, site, source), site.rank)
            done.append(Start(name, method, how.learns, how.keeps))
    for name, site in places.items():  # nothing fails from here on, and a flag is no value that could be put back
        learning = {id(getattr(parts[name], each)) for each in how.learns}
        for parameter in found.branches(site)[0].parameters():
            parameter.requires_grad_(id(parameter) in learning)
    return done


def _check_arguments(how: Method, method: str, loss: Any, lr: Any) -> None:
    if how.of_gradient and not callable(loss):
        raise ConfigError(f"method={method!r} needs loss=…, a callable(model, batch) -> scalar, and batches=…")
    if how.of_gradient and (isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < float("inf")):
        raise ConfigError(f"method={method!r} needs lr=…, the rate of the step it starts at, not {shown(lr)}")
    if not how.of_gradient and (loss is not None or lr is not None):
        raise ConfigError(f"method={method!r} reads W alone; loss and lr are for 'gradient'")


def _parts(name: str, branch: Branch, method: str, how: Method) -> _Parts:
    """D, U, what is between them and s of a branch that `method` is for; raises `ConfigError` for any other."""
    if refusal := more_than_its_tensors(branch):
        raise ConfigError(f"the branch at {name!r} cannot be initialised: {refusal.reason}")
    held = core_of(branch.sigma())
    if (held[0] if held else "") != how.between:
        raise ConfigError(f"method={method!r} is not for the branch at {name!r}; it needs {_REMEDIES[how.between]}")
    if held is not None:
        named = dict(branch.named_parameters())
        return _Parts(named["down"], named["up"], held[1], named.get("down_bias"))
    pairs = branch.factors()
    if isinstance(pairs, Refusal) or len(pairs) != 1:
        reason = pairs.reason if isinstance(pairs, Refusal) else f"it holds {len(pairs)} pairs of matrices, not one"
        raise ConfigError(f"method={method!r} is not for the branch at {name!r}: {reason}")
    return _Parts(pairs[0].down, pairs[0].up, scale=pairs[0].scale)


def _weight(found: Running, name: str, site: Site) -> Tensor:
    """The layer's own W, laid out as the layer has it; raises `ConfigError` where there is none to read."""
    layer = None if site.weight or site.is_block else found.model.get_submodule(site.fqn)
    weight = None if layer is None else layer._parameters.get("weight")
    if weight is None or weight.is_meta or (refusal := why_unsuitable(weight)):
        reason = (
            "is no matrix of one layer" if weight is None else "has no values" if weight.is_meta else f"is {refusal}"
        )
        raise ConfigError(f"W of {name!r} {reason}, so no branch can start from it; leave it out with exclude=…")
    return weight


def _lying(found: Running, site: Site, matrix: Tensor) -> Tensor:
    """[N, K] in float32 or better."""
    row = row_of(found.model.get_submodule(site.fqn))
    wide = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)).flatten(1)  # a 1×1 convolution's too
    return wide.t() if row is not None and row.layout == "[K, N]" else wide


def _fill(name: str, parts: _Parts, how: Method, matrix: Tensor, rank: int) -> None:
    if not matrix.isfinite().all():
        raise ConfigError(f"what {name!r} would start from has values that are not finite")
    values = how.values(matrix, rank)
    parts.down.copy_(values.down)
    parts.up.copy_(values.up / parts.scale)
    if parts.bias is not None:
        parts.bias.zero_()
    if parts.between is not None:
        assert values.between is not None
        parts.between.copy_(values.between)

"""`noble_fx.truncate_bases`: the parts of bases that count least are cut off."""

from __future__ import annotations

from torch import nn

from noble_fx.attach.bases import structured_layers
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.bases.base import Base
from noble_fx.config import check_rank, plain_rank, resolve_rank
from noble_fx.errors import ConfigError, Refusal, shown
from noble_fx.layers.restructure import densify, exchange_base
from noble_fx.torch_versions import forget_compiled
from noble_fx.wrappers import own_name


def truncate_bases(model: nn.Module, rank: int | float | None = None, threshold: float | None = None) -> dict[str, int]:
    """Keep of every base the parts that count most, in place; returns the ranks by the layers' names.

    `rank`: how many (a number, or a share of min(K, N)); or `threshold`: all that count at least that share of what the
    first one does. What counts is s of a "spectral" base, ‖A[:, j:]‖ ‖B[j:]‖ of an "ordered" one, the singular values
    of a "factorized" one. A layer that would save nothing by it gets its W back as one matrix: rank 0. The parameters
    are new ones, so build optimizers anew. Raises `ConfigError` where there is nothing that can be cut, and
    `CaptureError` for a wrapped model; the model is then as it was.
    """
    _check(rank, threshold)
    layers = structured_layers(model)
    if not layers:
        raise ConfigError("no weight of the model has another form, so there is nothing to cut")
    check_unwrapped(model, "change", layers)
    shorter = {fqn: _cut(layer.base, rank, threshold) for fqn, layer in layers.items()}
    cut = {fqn: base for fqn, base in shorter.items() if isinstance(base, Base)}
    if not cut:
        fqn, refusal = next(iter(shorter.items()))
        raise ConfigError(f"none of the model's bases can be cut; {own_name(fqn, model)!r}: {refusal}")
    forget_compiled()
    with restored_on_error(model):
        for fqn, base in cut.items():
            exchange_base(layers[fqn], base)
        ranks = {own_name(fqn, model): base.rank for fqn, base in cut.items()}
        for fqn, base in cut.items():
            if sum(p.numel() for p in base.parameters()) >= base.in_features * base.out_features:
                densify(layers[fqn])
                ranks[own_name(fqn, model)] = 0
    return ranks


def _check(rank: int | float | None, threshold: float | None) -> None:
    if (rank is None) == (threshold is None):
        raise ConfigError("truncate_bases takes either rank=… or threshold=…")
    if rank is not None:
        check_rank(plain_rank(rank), "rank", budget=False)
    elif isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ConfigError(f"threshold={shown(threshold)} must be a share of the first part's weight, between 0 and 1")


def _cut(base: Base, rank: int | float | None, threshold: float | None) -> Base | Refusal:
    """The base with the parts that are kept, of all of them where none is cut; or why it has no parts."""
    importances = base.importances()
    if isinstance(importances, Refusal):
        return importances
    if threshold is not None:
        kept = max(1, int((importances >= threshold * importances[0]).sum()))
    else:
        kept = resolve_rank(plain_rank(rank), base.in_features, base.out_features)
    return base.truncated(kept) if kept < base.rank else base

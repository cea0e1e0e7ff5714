"""The kinds of bases by name: one line a file."""

from __future__ import annotations

from typing import Any

from noble_fx.bases.base import Base
from noble_fx.bases.low_rank import LowRank
from noble_fx.errors import ConfigError, nearest, shown

KINDS: dict[str, type[Base]] = {kind.kind: kind for kind in (LowRank,)}


def base_class(name: Any) -> type[Base]:
    """The class of that name; raises `ConfigError` that lists the names."""
    if not isinstance(name, str) or name not in KINDS:
        near = nearest(name, list(KINDS)) if isinstance(name, str) else ""
        raise ConfigError(f"base={shown(name)} is unknown{near}; use one of {', '.join(KINDS)}")
    return KINDS[name]


def base_of(described: dict[str, Any], in_features: int, out_features: int) -> Base:
    """A base on the meta device from what `Base.described` said; raises `ConfigError` for what it does not say."""
    settings = dict(described)
    kind = base_class(settings.pop("kind", None))
    error, method, rank = settings.pop("error", None), settings.pop("method", ""), settings.pop("rank", None)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ConfigError(f"rank={shown(rank)} of a base is no integer ≥ 1")
    base = kind.on_meta(in_features, out_features, rank, **settings)
    base.error, base.method = error, method
    return base

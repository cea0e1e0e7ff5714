"""The kinds of bases by name: one line a file."""

from __future__ import annotations

from typing import Any

from noble_fx.bases.base import Base
from noble_fx.bases.block_diagonal import BlockDiagonal
from noble_fx.bases.guided import Guided
from noble_fx.bases.low_rank import LowRank
from noble_fx.bases.ordered import Ordered
from noble_fx.bases.sparse_low_rank import SparseLowRank
from noble_fx.bases.spectral import Spectral
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, nearest, shown

KINDS: dict[str, type[Base]] = {kind.kind: kind for kind in (LowRank, SparseLowRank, BlockDiagonal, Ordered, Spectral)}


def base_class(name: Any) -> type[Base]:
    """The class of that name; raises `ConfigError` that lists the names."""
    if not isinstance(name, str) or name not in KINDS:
        near = nearest(name, list(KINDS)) if isinstance(name, str) else ""
        raise ConfigError(f"base={shown(name)} is unknown{near}; use one of {', '.join(KINDS)}")
    return KINDS[name]


def check_base(config: NobleConfig) -> None:
    """Refuse, before a model is looked at, a kind of base or numbers of it that no layer could have."""
    if config.base is None:
        return
    kind = base_class(config.base)
    kind.completed(config.base_settings or {})
    if config.base_rank is None and not kind.whole:
        raise ConfigError(f"base={config.base!r} needs a rank: base_rank=…, a number or a share of min(K, N)")


def base_of(described: dict[str, Any], in_features: int, out_features: int) -> Base:
    """A base on the meta device from what `Base.described` said; raises `ConfigError` for what it does not say."""
    settings = dict(described)
    kind = base_class(settings.pop("kind", None))
    error, method, rank = settings.pop("error", None), settings.pop("method", ""), settings.pop("rank", None)
    guide = settings.pop("guide", None)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ConfigError(f"rank={shown(rank)} of a base is no integer ≥ 1")
    base = kind.on_meta(in_features, out_features, rank, **settings)
    base.error, base.method = error, method
    return base if guide is None else Guided.on_top(base, guide)

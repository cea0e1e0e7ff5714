"""The layers that may be compressed: a plain product of one weight, of which nobody else has a part.

What is left out has its reason, as everywhere; a layer that was named and cannot be is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from noble_fx.bases.base import Base
from noble_fx.branches.base import Branch
from noble_fx.compressing.moments import wide
from noble_fx.compressing.target import Terms
from noble_fx.config import NobleConfig
from noble_fx.distributed import is_distributed
from noble_fx.errors import ConfigError, Refusal
from noble_fx.layers.quantized import foreign
from noble_fx.layers.restructure import matrix_of, why_dense
from noble_fx.sites.choose import choose
from noble_fx.sites.find import find_maps
from noble_fx.sites.layer_maps import LinearMap
from noble_fx.sites.site import Site

_NO_LAYER = "a bare parameter, whose product is the model's own code; compress replaces layers"


@dataclass(frozen=True)
class Place:
    """One layer to compress, by the first of its names."""

    site: Site
    layer: Any
    branch: Branch | None = None  # whose U is fitted again: one that says what U reads

    @classmethod
    def of(cls, site: Site, layer: Any) -> Place:
        """The place of a layer that has its weight yet."""
        branch = layer._modules.get("noble")
        if not isinstance(branch, Branch):
            return cls(site, layer)
        no_rows = matrix_of(layer).detach().new_zeros(0, site.in_features)
        return cls(site, layer, None if isinstance(branch.before_up(no_rows), Refusal) else branch)

    @property
    def name(self) -> str:
        return self.site.fqn

    @property
    def weight(self) -> Tensor:
        """W [N, K], a view."""
        return matrix_of(self.layer).detach()

    @property
    def bias(self) -> Tensor | None:
        """b [N], or None."""
        bias: Tensor | None = self.layer.bias
        return bias

    @property
    def free(self) -> int:
        """r, how many columns U has; 0 where none is fitted again."""
        branch: Any = self.branch
        return 0 if branch is None else int(branch.up.shape[1])

    @property
    def terms(self) -> Terms:
        """W, U and b in float64; U [N, 0] where no U is fitted again."""
        branch, weight = self.branch, wide(self.weight)
        up: Any = weight.new_zeros(len(weight), 0) if branch is None else branch.up
        return Terms(weight, wide(up), None if self.bias is None else wide(self.bias))


def find_places(model: nn.Module, select: Any, exclude: Any) -> tuple[list[Place], tuple[Site, ...]]:
    """The layers that are chosen and can be compressed, and every site with its reason; raises `ConfigError`."""
    maps = find_maps(model)
    config = NobleConfig(rank=1, select=select, exclude=exclude)
    shared = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    elsewhere = {id(module.out_proj) for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    against = {each.site.fqn: refusal.reason for each in maps if (refusal := _refusal(each, shared, elsewhere))}
    # A map that cannot be is passed over as if it were excluded, unless nobody asked for it anyway.
    wanted = {site.fqn for site in choose(model, _free(maps), config, strict=False) if site.selected}
    taken = {name: reason for name, reason in against.items() if name in wanted}
    sites = choose(model, _free(maps), config, strict=False, taken=taken)
    sites = tuple(replace(site, action=Base.action if site.selected else "", rank=0, params=0) for site in sites)
    _check_named(sites, select, against)
    by_name = {each.site.fqn: each.module for each in maps}
    places = [Place.of(site, by_name[site.fqn]) for site in sites if site.selected]
    if not places:
        raise ConfigError(_nothing(sites, select))
    return places, sites


def _free(maps: Sequence[LinearMap]) -> list[LinearMap]:
    """The maps without what speaks against a branch alone; what speaks against compressing is asked here."""
    return [replace(each, obstacle=None, unsuitable=None, eager=None, frozen=False, note="") for each in maps]


def _refusal(entry: LinearMap, shared: Counter[int], read_elsewhere: set[int]) -> Refusal | None:
    """Why this map cannot be compressed, or None."""
    layer: Any = entry.module
    if layer is None or entry.site.weight:
        return Refusal(_NO_LAYER)
    if entry.unsuitable:
        return Refusal(f"its weight is {entry.unsuitable}; compress the model before it is quantized")
    weight = layer._parameters.get("weight")
    if foreign(weight):
        return Refusal(f"its weight is {foreign(weight)}; compress the model before it is quantized")
    if refusal := entry.obstacle or why_dense(layer):
        return refusal
    if weight.ndim != 2:
        return Refusal(f"{entry.site.kind} is no layer of one matrix")
    if id(layer) in read_elsewhere:
        return Refusal("nn.MultiheadAttention multiplies with its weight itself")
    if shared[id(weight)] > 1:
        return Refusal("its weight is tied to another module's, and would be one no more")
    if is_distributed(weight):
        return Refusal("its weight is spread over ranks; compress the plain model, then shard it")
    if weight.is_meta:
        return Refusal("its weight is on the meta device, without values")
    return None


def _check_named(sites: Sequence[Site], select: Any, against: dict[str, str]) -> None:
    """Raise `ConfigError` for a layer that is named in a list and cannot be compressed."""
    if isinstance(select, str) or callable(select):
        return
    for site in sites:
        if not site.selected and site.fqn in against and {site.fqn, *site.aliases} & set(select):
            raise ConfigError(f"select names {site.fqn!r}, which cannot be compressed: {against[site.fqn]}")


def _nothing(sites: Sequence[Site], select: Any) -> str:
    if not sites:
        return "the model has no linear layer, so there is nothing to compress"
    reasons = Counter(site.reason for site in sites).most_common(4)
    listed = "; ".join(f"{count} × {reason}" for reason, count in reasons)
    return f"select={select!r} leaves no layer to compress: {listed}"

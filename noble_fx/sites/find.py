"""Every linear map of a model once, with its role and whatever speaks against it; nothing here changes a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx, nn

from noble_fx.sites.defaults import with_defaults
from noble_fx.sites.layer_maps import LinearMap, layer_maps
from noble_fx.sites.parameter_maps import as_exported, parameter_maps


def find_maps(
    model: nn.Module, flow_roles: Mapping[str, str] | None = None, graphs: Sequence[fx.Graph] = ()
) -> list[LinearMap]:
    """Every linear map of `model`: its layers, then parameters that are maps outside of any known layer.

    Exported `graphs` show which parameters are multiplied with; without them, only what attentions and stacked
    experts hold is listed. Raises `ConfigError` where a registered layer row lies about its shape.
    """
    layers = layer_maps(model, flow_roles)
    if graphs:
        layers = as_exported(model, layers, graphs)
    return with_defaults(model, layers + parameter_maps(model, layers, graphs))

"""Build the branches of one site, and draw them (and with init_base=True the weight beside them) from the seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.attach import branch_paths, site_name
from noble_fx.attach.bases import refill_base
from noble_fx.branches.base import Branch
from noble_fx.branches.drawing import drawing
from noble_fx.branches.kinds import branch_class
from noble_fx.config import NobleConfig
from noble_fx.distributed import laid_out_like, lay_beside
from noble_fx.layers.quantized import computing_dtype
from noble_fx.layers.registry import bias_of, describe, layout_of
from noble_fx.layers.structured import Structured
from noble_fx.sites.site import Site
from noble_fx.wrappers import own_name


def build_branches(model: nn.Module, site: Site, config: NobleConfig) -> list[Branch]:
    """The branch of a site, or one per expert."""
    owner = model.get_submodule(site.weight.rpartition(".")[0] if site.weight else site.fqn)
    weight = base_tensors(model, site)[0]
    kind = branch_class(config)
    branches = []
    for path in branch_paths(site):
        # Drawn on the CPU in float32, so that a seed means the same branch on every device and in every dtype.
        name = own_name(site_name(path), model)
        with drawing(config, name), torch.device("meta" if weight.is_meta else "cpu"):
            branch = kind(site.in_features, site.out_features, site.rank, config, site.role)
        branch.site, branch.drawn_as, branch.lacks_values = site, name, weight.is_meta
        branch.prepare(site.unfused if config.fuse else "fuse=False")
        branch.to(device=weight.device, dtype=computing_dtype(model, owner, weight))
        lay_beside(branch, weight, site.layout or layout_of(owner))
        branches.append(branch.train(owner.training))
    return branches


def base_tensors(model: nn.Module, site: Site) -> list[Tensor]:
    """The weight of one site, and its bias where it has one: what `draw_base` changes. Of a block, one inside.

    Of a layer whose W has another form, what that is made of in the weight's place.
    """
    if site.is_block:
        return [_weight_inside(model.get_submodule(site.fqn))]
    owner = model.get_submodule(site.weight.rpartition(".")[0] if site.weight else site.fqn)
    if isinstance(owner, Structured):
        return [*owner.base.parameters(), *owner.base.buffers(), *([owner.bias] if owner.bias is not None else [])]
    weight = model.get_parameter(site.weight) if site.weight else owner.weight
    assert isinstance(weight, Tensor)
    bias = bias_of(owner, site.weight.rpartition(".")[2])
    return [weight] if bias is None else [weight, bias]


def _weight_inside(block: nn.Module) -> Tensor:
    """The weight of the first linear map in a block: in its dtype, on its device a branch around the block computes."""
    layers = [module for module in block.modules() if describe(module) is not None]
    weights = (
        next(layer.base.parameters()) if isinstance(layer, Structured) else getattr(layer, "weight", None)
        for layer in layers
    )
    return next((weight for weight in weights if isinstance(weight, Tensor)), next(block.parameters()))


def draw_base(model: nn.Module, site: Site, config: NobleConfig) -> None:
    """Draw the weight of one site again, N(0, gain / √K), and set its bias to zero; nothing happens on meta.

    A W of another form becomes that form of the weight that would be drawn.
    """
    layer: Any = None if site.weight else model.get_submodule(site.fqn)
    weight, *biases = base_tensors(model, site)
    if weight.is_meta:
        return
    with drawing(config, own_name(site.weight or f"{site.fqn}.weight", model)):
        shape = layer.weight_shape if isinstance(layer, Structured) else tuple(weight.shape)
        drawn = torch.randn(shape) * config.recipe.base_gain * site.in_features**-0.5
    with torch.no_grad():
        if isinstance(layer, Structured):
            refill_base(model, site, layer.laid_out(drawn), config)
            biases = [layer.bias] if layer.bias is not None and config.init_base else []
        else:
            weight.copy_(laid_out_like(weight, drawn))
        for bias in biases:
            bias.zero_()

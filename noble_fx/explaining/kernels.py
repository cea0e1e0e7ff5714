"""Which kernels a fused site has on a GPU, in which ways they may be put together, and which was measured fastest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from noble_fx.branches.base import Branch
from noble_fx.codegen.plan import Layer
from noble_fx.errors import Refusal
from noble_fx.ops.available import kernels_on
from noble_fx.runtime.autotune import Variant, answers
from noble_fx.runtime.layer_kernels import LayerKernels

UNMEASURED = "measured on the GPU at the first call"


@dataclass(frozen=True)
class KernelAccount:
    """The kernels of all sites of one size, one dtype and one σ."""

    layer: Layer  # what the kernels are generated from
    sites: int
    in_features: int
    out_features: int
    rank: int
    act: str
    dtype: str
    kernels: tuple[str, ...]  # their names
    forward: tuple[str, ...]  # the ways that are measured
    backward: tuple[str, ...]
    chosen: dict[str, str]  # the fastest way, by what was asked (direction, rows, GPU); empty before the first call

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("kernels", "forward", "backward")}
        return {**{name: value for name, value in vars(self).items() if name != "layer"}, **lists}


def kernel_accounts(sites: Iterable[tuple[Branch, bool]]) -> tuple[KernelAccount, ...]:
    """One account for each kind of layer, of the branches of fused sites, each with whether its layer has a bias.

    They are those of the branch's device; elsewhere than on a GPU those that an sm_80 would have.
    """
    first: dict[Layer, Branch] = {}
    count: Counter[Layer] = Counter()
    for branch, bias in sites:
        layer = _layer(branch, bias)
        count[layer] += 1
        first.setdefault(layer, branch)
    found = [(layer, branch, kernels_on(_device(branch), layer)) for layer, branch in first.items()]
    return tuple(
        _account(layer, count[layer], branch.label, kernels)
        for layer, branch, kernels in found
        if not isinstance(kernels, Refusal)
    )


def _layer(branch: Branch, bias: bool) -> Layer:
    dtype, down_bias = branch.dtype, branch.bound is not None and branch.bound.has_down_bias
    return Layer(branch.in_features, (branch.out_features,), branch.width, branch.key, dtype, dtype, bias, down_bias)


def _device(branch: Branch) -> torch.device:
    return next((p.device for p in branch.parameters()), torch.device("cpu"))


def _account(layer: Layer, sites: int, act: str, kernels: LayerKernels) -> KernelAccount:
    needs = dict.fromkeys(("x", "weight", "bias", "down", "down_bias", "up"), True)
    return KernelAccount(
        layer=layer,
        sites=sites,
        in_features=layer.in_features,
        out_features=layer.out_features[0],
        rank=layer.rank,
        act=act,
        dtype=str(layer.dtype).removeprefix("torch."),
        kernels=tuple(kernels.kernels),
        forward=tuple(map(_words, kernels.forward_variants()[0])),
        backward=tuple(map(_words, kernels.backward_variants(needs)[0])),
        chosen={_asked(q, kernels.title): _words(way) for q, way in answers().items() if kernels.title in q},
    )


def _words(variant: Variant) -> str:
    return " + ".join(variant)


def _asked(question: str, title: str) -> str:
    """A question of `ops.directions` without what every one of this layer has in it."""
    return question.replace(f", {title}", "")

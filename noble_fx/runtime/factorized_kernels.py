"""A layer whose W is A B, with its branch, by generated kernels: those of three plain layers, on other tensors.

    forward    the vendor's GEMM       z = x Bᵀ
               bottleneck_forward      x -> h, t                       of the layer K -> N
               linear_up_forward       y = z Aᵀ + b + t Uᵀ             of a layer k -> N, x there is z and W is A
    backward   the vendor's GEMM       dz = dy A
               bottleneck_backward     dy, h -> t, dh, …               of the layer K -> N
               linear_backward_input   dx = dz B + dh D                of a layer K -> k, dy there is dz and W is B
               the vendor's GEMMs      dA = dyᵀ z, dB = dzᵀ x

So no kernel is generated for it alone, and none is as wide as k + r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product as combinations

from noble_fx.codegen.plan import Layer
from noble_fx.runtime.autotune import Variant
from noble_fx.runtime.call import Call, CallBuilder, ColumnSum, Plain
from noble_fx.runtime.layer_kernels import KERNEL, VENDOR, LayerKernels, Named, layer_kernels


@dataclass(frozen=True)
class FactorizedKernels(LayerKernels):
    """The kernels of the layer, and of the two that are as deep and as wide as its thin products."""

    outer: LayerKernels
    inner: LayerKernels

    def forward_variants(self) -> tuple[list[Variant], Variant]:
        """Every variant of forward, and the default."""
        return [(KERNEL,), (VENDOR,)], (self._product(self.outer.layer.in_features),)

    def forward(self, operands: Named, variant: Variant, keep_h: bool = True) -> Call:
        """x [S, K] and the layer's tensors -> "y" [S, N], and "z" [S, k] and "h" [S, r] where they are kept."""
        call = self._begin(operands)
        call.operator(Plain, "z", "x", "base_down", None)
        call.dense_rows("z", self.outer.layer.in_features)
        if not self.plan.split_forward:
            self._bottleneck_h(call, scratch=not keep_h)
        self._bottleneck_forward(call)
        self._add_branch(call, *variant)
        return call.finish({"y": "y"} | ({"z": "z", "h": "h"} if keep_h else {}))

    def _add_branch(self, call: CallBuilder, product: str) -> None:
        """y = z Aᵀ + b + t Uᵀ"""
        if product == VENDOR:
            call.operator(Plain, "y", "z", "base_up", "bias" if self.layer.bias else None)
            call.product("y", "t", "up", right_transposed=True, into=True)
        else:
            self._result(call, "y", self.layer.out_features[0])
            call.launch_as(self.outer.kernels["linear_up_forward"], {"x": "z", "weight": "base_up"})

    def backward_variants(self, needs: Mapping[str, bool]) -> tuple[list[Variant], Variant]:
        """Every variant of backward with these needs, and the default."""
        inputs = [KERNEL, VENDOR] if needs["x"] else [VENDOR]
        weights = [VENDOR, KERNEL] if needs["up"] or needs["down"] else [VENDOR]
        usual = self._product(self.inner.layer.out_features[0])
        return list(combinations(inputs, weights)), (usual if usual in inputs else VENDOR, weights[-1])

    def _input(self, call: CallBuilder, choice: str) -> None:
        """dx = dz B + dh D"""
        self._inner_gradient(call)
        if choice == VENDOR:
            call.product("dx", "dz", "base_down")
            call.product("dx", "dh", "down", into=True)
        else:
            self._result(call, "dx", self.layer.in_features)
            call.launch_as(self.inner.kernels["linear_backward_input"], {"dy": "dz", "weight": "base_down"})

    def _inner_gradient(self, call: CallBuilder) -> None:
        """dz = dy A"""
        if "dz" not in call:
            call.product("dz", "dy", "base_up")
            call.dense_rows("dz", self.outer.layer.in_features)

    def _base_weights(self, call: CallBuilder, needs: Mapping[str, bool], gradients: dict[str, str]) -> None:
        """dA = dyᵀ z, dB = dzᵀ x and db = Σ dy, where they are needed and not there yet."""
        if needs["base_up"]:
            call.product("d_base_up", "dy", "z", left_transposed=True)
            gradients["base_up"] = "d_base_up"
        if needs["base_down"]:
            self._inner_gradient(call)
            call.product("d_base_down", "dz", "x", left_transposed=True)
            gradients["base_down"] = "d_base_down"
        if needs["bias"] and "bias" not in gradients:
            call.operator(ColumnSum, "d_bias", "dy")
            gradients["bias"] = "d_bias"


def factorized_kernels(layer: Layer, base_rank: int, backend: str, shared: int, tf32: bool) -> FactorizedKernels:
    """The kernels of a layer whose W is of rank `base_rank`; raises `KernelError` where there are none."""
    own, outer, inner = (
        layer_kernels(one, backend, shared, tf32)
        for one in (
            layer,
            replace(layer, in_features=base_rank),
            replace(layer, out_features=(base_rank,), bias=False),
        )
    )
    return FactorizedKernels(own.plan, f"{own.title}, W of rank {base_rank}", own.kernels, own.act, outer, inner)

"""One layer by generated kernels, or several that read the same x: what forward and backward do, in every variant.

    forward    bottleneck_forward              x -> h, t = σ(h)
               linear_up_forward               y = x Wᵀ + b + t Uᵀ           or the vendor's GEMM, then y += t Uᵀ
                                                                              or y = t Uᵀ + b, then the vendor adds x Wᵀ
                                                                              or the sum by tensor descriptors
    backward   bottleneck_backward             dy, h -> t, dh, and what each tile of rows adds to d and σ's parameters
               reduce_partials                 the sums of those
               linear_backward_input           dx = Σ dy W + dh D            or the vendor's GEMMs, accumulating
                                                                              or dx = dh D, then the vendor adds dy W
                                                                              or the sum by tensor descriptors
               the vendor's GEMM               dW = dyᵀ x
               branch_weight_backward          dU = dyᵀ t, dD = dhᵀ x, db    or the vendor's GEMMs, and a sum

A variant is a tuple of words, one for each choice: "kernel", "vendor", "branch first", "descriptors". The tensors of a
layer go by the names that the kernels give them: "x", "weight", "act_phase", and with a number behind them where sites
share a launch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product as combinations

import torch
from torch import Tensor

from noble_fx.codegen.cache import plan_name
from noble_fx.codegen.generate import generate
from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.kernels.branch_weights import SPLITS, branch_weights_width
from noble_fx.codegen.kernels.stages import Gemm, Stage, Steps, backward_steps, forward_steps
from noble_fx.codegen.plan import Layer, Plan, make_plan
from noble_fx.codegen.sigma.in_kernel import activation, is_gated, tensor_name
from noble_fx.runtime.autotune import Variant
from noble_fx.runtime.call import Call, CallBuilder, Cast, ColumnSum, Plain, Stack

KERNEL, VENDOR, FIRST, DESCRIPTORS = "kernel", "vendor", "branch first", "descriptors"
# Up to this depth of the main product the pass over y that a second product costs weighs more than the 3 to 14 % that
# a Triton GEMM loses to the vendor's on Hopper: 4 N bytes at 4.8 TB/s against a tenth of 2 K N FLOPs at 700 TFLOP/s.
_DEEP = 2048
_TMA = {KERNEL: "", DESCRIPTORS: "_tma"}  # of the one-accumulation products' names

Named = Mapping[str, Tensor]


@functools.lru_cache(maxsize=512)
def layer_kernels(layer: Layer, backend: str, shared: int, tf32: bool, descriptors: bool = False) -> LayerKernels:
    """The kernels of a layer on a GPU with `shared` bytes a block, which may copy by tensor descriptors; raises
    `KernelError` where there are none."""
    plan = make_plan(layer, backend, tf32, shared, descriptors, is_gated(layer))
    program = activation(layer)
    return LayerKernels(plan, plan_name(plan), generate(plan), tuple(map(tensor_name, program.names)))


@dataclass(frozen=True)
class LayerKernels:
    """The kernels of one plan, and the calls that they make up."""

    plan: Plan
    title: str  # names the plan, the same in every process
    kernels: dict[str, Kernel]
    act: tuple[str, ...]  # what they call σ's tensors

    @property
    def layer(self) -> Layer:
        """The layer that they are for."""
        return self.plan.layer

    @property
    def sites(self) -> range:
        """The numbers of its sites."""
        return range(self.plan.layer.sites)

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward_variants(self) -> tuple[list[Variant], Variant]:
        """Every variant of forward, and the default."""
        more = [(FIRST,)] if "branch_first_forward" in self.kernels else []
        more += [(DESCRIPTORS,)] if self.plan.tma else []
        return [(KERNEL,), (VENDOR,), *more], (self._product(self.layer.in_features),)

    def forward(self, operands: Named, variant: Variant, keep_h: bool = True) -> Call:
        """x [S, K] and the layer's tensors -> "y" [S, N] of each site, and "h" [S, r] ([G, S, r] of a group)."""
        (product,) = variant
        call, layer = self._begin(operands), self.layer
        if not self.plan.split_forward:
            self._bottleneck_h(call, scratch=not keep_h)
        if product == FIRST:
            self._branch_first(call)
        else:
            self._bottleneck_forward(call)
            self._add_branch(call, product)
        y_of_sites = {name: name for name in (layer.name("y", site) for site in self.sites)}
        return call.finish(y_of_sites | ({"h": "h"} if keep_h else {}))

    def _bottleneck_forward(self, call: CallBuilder) -> None:
        """h and t of each site."""
        for site in self.sites:
            call.buffer(self.layer.name("t", site), ("rows", self.layer.rank), self.layer.dtype)
        if self.plan.split_forward:
            self._split_forward(call)
        else:
            call.launch("bottleneck_forward")

    def _add_branch(self, call: CallBuilder, product: str) -> None:
        """y = x Wᵀ + b + t Uᵀ, in one accumulation or by the vendor's two."""
        for site in self.sites:
            y, weight, bias, t, up = (self.layer.name(name, site) for name in ("y", "weight", "bias", "t", "up"))
            if product == VENDOR:
                call.operator(Plain, y, "x", weight, bias if self.layer.bias else None)
                call.product(y, t, up, right_transposed=True, into=True)
            else:
                self._result(call, y, self.layer.out_features[site])
        if product != VENDOR:
            call.launch(f"linear_up_forward{_TMA[product]}")

    def _branch_first(self, call: CallBuilder) -> None:
        """y = t Uᵀ + b while t is in registers; the vendor's GEMM adds x Wᵀ."""
        for site, columns in enumerate(self.layer.out_features):
            self._result(call, self.layer.name("y", site), columns)
        call.launch("branch_first_forward")
        for site in self.sites:
            y, weight = self.layer.name("y", site), self.layer.name("weight", site)
            call.product(y, "x", weight, right_transposed=True, into=True)

    def _result(self, call: CallBuilder, name: str, columns: int) -> None:
        call.buffer(name, ("rows", columns), self.layer.dtype, scratch=False)

    # --- backward ----------------------------------------------------------------------------------------------------

    def backward_variants(self, needs: Mapping[str, bool]) -> tuple[list[Variant], Variant]:
        """Every variant of backward with these needs, and the default."""
        inputs = [KERNEL, VENDOR, FIRST, *([DESCRIPTORS] if self.plan.tma else [])] if needs["x"] else [VENDOR]
        narrow = [self.layer.name(name, site) for site in self.sites for name in ("up", "down")]
        weights = [VENDOR, KERNEL] if any(needs[name] for name in narrow) else [VENDOR]
        usual = self._product(sum(self.layer.out_features))
        return list(combinations(inputs, weights)), (usual if usual in inputs else VENDOR, weights[-1])

    def backward(self, operands: Named, needs: Mapping[str, bool], variant: Variant) -> Call:
        """A gradient for each operand that needs one, by its name; in the order of `needs` in every variant.

        Operands are forward's without the biases, dy [S, N] of each site, and h as forward gives it.
        """
        inputs, weights = variant
        call = self._begin(operands)
        self._parts_of_h(call)
        gradients: dict[str, str] = {}
        if any(need for name, need in needs.items() if not name.startswith(("weight", "bias", "base_"))):
            at_once = inputs == FIRST and needs["x"] and "branch_first_backward" in self.kernels
            if at_once:
                self._result(call, "dx", self.layer.in_features)
            self._bottleneck(call, "branch_first_backward" if at_once else "")
            gradients = self._row_sums(call, needs)
            if needs["x"]:
                self._input(call, inputs)
                gradients["x"] = "dx"
            gradients |= (
                self._branch_weights(call, needs) if weights == VENDOR else self._branch_weights_at_once(call, needs)
            )
        self._base_weights(call, needs, gradients)
        return call.finish({name: gradients[name] for name, need in needs.items() if need})

    def _base_weights(self, call: CallBuilder, needs: Mapping[str, bool], gradients: dict[str, str]) -> None:
        """dW = dyᵀ x and db = Σ dy, where they are needed and not there yet."""
        for site in self.sites:
            weight, bias, dy = (self.layer.name(name, site) for name in ("weight", "bias", "dy"))
            if needs[weight]:
                call.product(f"d_{weight}", dy, "x", left_transposed=True)
                gradients[weight] = f"d_{weight}"
            if needs[bias] and bias not in gradients:
                call.operator(ColumnSum, f"d_{bias}", dy)
                gradients[bias] = f"d_{bias}"

    def _bottleneck(self, call: CallBuilder, instead: str) -> None:
        """What follows from dt = dy U and h alone: t, dh, and what each tile of rows adds to sums over the rows.

        `instead` of its own kernel one that makes more at the end.
        """
        steps, layer = backward_steps(self.plan), self.layer
        for site in self.sites:
            for name in ("t", "dh"):
                call.buffer(layer.name(name, site), ("rows", layer.rank), layer.dtype)
            call.buffer(layer.name("partials", site), ("programs", steps.width), torch.float32)
            if self.plan.split_backward:
                call.product(*(layer.name(name, site) for name in ("dt", "dy", "up")))
        if instead:
            call.launch(instead)
        else:
            self._steps(call, steps)

    def _split_forward(self, call: CallBuilder) -> None:
        """h by the vendor's GEMM, then t in stages."""
        h = []
        for site in self.sites:
            own, down, bias = (self.layer.name(name, site) for name in ("h", "down", "down_bias"))
            call.product(own, "x", down, bias if self.layer.down_bias else None, right_transposed=True, wide=True)
            h.append(own)
        if self.layer.sites > 1:
            call.operator(lambda out, *of: Stack(out, of), "h", *h)
        self._steps(call, forward_steps(self.layer))

    def _steps(self, call: CallBuilder, steps: Steps) -> None:
        """Kernels and GEMMs in turn, and the buffers between them."""
        for name, width in steps.buffers().items():
            for site in self.sites:
                call.buffer(self.layer.name(name, site), ("rows", width), torch.float32)
        for step in steps.steps:
            if isinstance(step, Stage):
                call.launch(step.name)
            else:
                for site in self.sites:
                    self._gemm(call, step, site)

    def _gemm(self, call: CallBuilder, gemm: Gemm, site: int) -> None:
        """A product that stands between two kernels, in float32."""
        out, left, right = (self.layer.name(name, site) for name in (gemm.out, gemm.left, gemm.right))
        bias = self.layer.name(gemm.bias, site) if gemm.bias else None
        turned = {"left_transposed": gemm.left_transposed, "right_transposed": gemm.right_transposed}
        call.product(out, left, right, bias, wide=True, **turned)

    def _row_sums(self, call: CallBuilder, needs: Mapping[str, bool]) -> dict[str, str]:
        """The gradients of d and of σ's parameters, which are sums over the rows."""
        gradients: dict[str, str] = {}
        layer, partials = self.layer, backward_steps(self.plan).partials
        sums = [(partial, layer.name(partial.name, site)) for partial in partials for site in self.sites]
        if any(needs[name.removeprefix("d_")] for _, name in sums):
            for partial, name in sums:
                dtype = layer.dtype if partial.name == "d_down_bias" else layer.act_dtype
                wanted = needs[name.removeprefix("d_")]
                gradients[name.removeprefix("d_")] = call.buffer(name, partial.shape, dtype, scratch=not wanted)
            call.launch("reduce_partials")
        for name in self.act:  # the gradients that were products over the rows
            for site in self.sites:
                gradient, own = layer.name(f"d_{name}", site), layer.name(name, site)
                if gradient in call and own not in gradients:
                    gradients[own] = gradient
                    if layer.act_dtype != torch.float32:
                        gradients[own] = f"{gradient}_stored"
                        call.operator(Cast, gradients[own], gradient, dtype=layer.act_dtype)
        return gradients

    def _input(self, call: CallBuilder, choice: str) -> None:
        """dx [S, K] = Σ dy W + dh D."""
        if choice != VENDOR and "dx" not in call:
            self._result(call, "dx", self.layer.in_features)
            call.launch("branch_first_input" if choice == FIRST else f"linear_backward_input{_TMA[choice]}")
        for site in self.sites if choice in (VENDOR, FIRST) else ():
            dy, weight, dh, down = (self.layer.name(name, site) for name in ("dy", "weight", "dh", "down"))
            call.product("dx", dy, weight, into="dx" in call)
            if choice == VENDOR:
                call.product("dx", dh, down, into=True)

    def _branch_weights_at_once(self, call: CallBuilder, needs: Mapping[str, bool]) -> dict[str, str]:
        """dU = dyᵀ t, dD = dhᵀ x and db = Σ dy by one kernel that reads dy once, and one that adds up."""
        layer = self.layer
        gradients: dict[str, str] = {}
        for site, columns in enumerate(layer.out_features):
            sums = layer.name("weight_partials", site)
            call.buffer(sums, (SPLITS, branch_weights_width(layer, site)), torch.float32)
            shapes = {"up": (columns, layer.rank), "down": (layer.rank, layer.in_features)}
            for name, shape in (shapes | ({"bias": (columns,)} if layer.bias else {})).items():
                own = layer.name(name, site)
                gradients[own] = call.buffer(f"d_{own}", shape, layer.dtype, scratch=not needs[own])
        call.launch("branch_weight_backward")
        call.launch("reduce_branch_weights")
        return gradients

    def _branch_weights(self, call: CallBuilder, needs: Mapping[str, bool]) -> dict[str, str]:
        """dU = dyᵀ t and dD = dhᵀ x by the vendor's GEMMs."""
        gradients = {}
        for site in self.sites:
            up, down, dy, t, dh = (self.layer.name(name, site) for name in ("up", "down", "dy", "t", "dh"))
            for name, left, right in ((up, dy, t), (down, dh, "x")):
                if needs[name]:
                    call.product(f"d_{name}", left, right, left_transposed=True)
                    gradients[name] = f"d_{name}"
        return gradients

    def _product(self, depth: int) -> str:
        """How a product of this depth is run where nothing was measured; full float32 has no tensor cores to win by."""
        full = self.plan.exact and self.plan.precision == "ieee"
        return VENDOR if full or depth > _DEEP else KERNEL

    # --- names -------------------------------------------------------------------------------------------------------

    def _begin(self, operands: Named) -> CallBuilder:
        return CallBuilder(self.kernels, operands, self.plan.bottleneck_backward.rows)

    def _bottleneck_h(self, call: CallBuilder, scratch: bool) -> None:
        """h [rows, r] in float32, or of a group [sites, rows, r] and its parts by their names."""
        if self.layer.sites == 1:
            call.buffer("h", ("rows", self.layer.rank), torch.float32, scratch)
        else:
            call.buffer("h", (self.layer.sites, "rows", self.layer.rank), torch.float32, scratch)
            self._parts_of_h(call)

    def _parts_of_h(self, call: CallBuilder) -> None:
        for site in self.sites if self.layer.sites > 1 else ():
            call.part(self.layer.name("h", site), "h", site, 4 * self.layer.rank)

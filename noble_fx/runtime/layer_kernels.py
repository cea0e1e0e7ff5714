"""One layer by generated kernels, or several that read the same x: forward and backward, every variant that is right.

    forward    bottleneck_forward              x -> h, t = σ(h)
               linear_up_forward               y = x Wᵀ + b + t Uᵀ           or the vendor's GEMM, then y += t Uᵀ
    backward   bottleneck_backward             dy, h -> t, dh, and what each tile of rows adds to d and σ's parameters
               reduce_partials                 the sums of those
               linear_backward_input           dx = Σ dy W + dh D            or the vendor's GEMMs, accumulating
               the vendor's GEMM               dW = dyᵀ x
               branch_weight_backward          dU = dyᵀ t, dD = dhᵀ x, db    or the vendor's GEMMs, and a sum

A variant is a tuple of words, one for each "or": "kernel" or "vendor". The tensors of a layer go by the names that the
kernels give them: "x", "weight", "act_phase", and with a number behind them where several sites share a launch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product as combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.codegen.cache import plan_name
from noble_fx.codegen.generate import generate
from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.kernels.branch_weights import SPLITS, branch_weights_width
from noble_fx.codegen.kernels.stages import Gemm, Stage, backward_steps
from noble_fx.codegen.plan import Layer, Plan, make_plan
from noble_fx.codegen.sigma.in_kernel import activation, tensor_name
from noble_fx.runtime.autotune import Variant
from noble_fx.runtime.launch import launch

KERNEL, VENDOR = "kernel", "vendor"
# Up to this depth of the main product the pass over y that a second product costs weighs more than the 3 to 14 % that
# a Triton GEMM loses to the vendor's on Hopper: 4 N bytes at 4.8 TB/s against a tenth of 2 K N FLOPs at 700 TFLOP/s.
_DEEP = 2048

Named = Mapping[str, Tensor]


@functools.lru_cache(maxsize=512)
def layer_kernels(layer: Layer, backend: str, shared: int, tf32: bool) -> LayerKernels:
    """The kernels of a layer on a GPU with `shared` bytes a block; raises `KernelError` where there are none."""
    plan = make_plan(layer, backend, tf32, shared)
    program = activation(layer)
    return LayerKernels(plan, plan_name(plan), generate(plan), tuple(map(tensor_name, program.names)))


@dataclass(frozen=True)
class LayerKernels:
    """The kernels of one plan, and what runs them."""

    plan: Plan
    title: str  # names the plan, the same in every process
    kernels: dict[str, Kernel]
    act: tuple[str, ...]  # what they call σ's tensors

    @property
    def layer(self) -> Layer:
        """The layer that they are for."""
        return self.plan.layer

    @property
    def _sites(self) -> range:
        return range(self.plan.layer.sites)

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward_variants(self) -> tuple[list[Variant], Variant]:
        """Every variant of forward, and the default."""
        return [(KERNEL,), (VENDOR,)], (self._product(self.layer.in_features),)

    def forward(self, operands: Named, variant: Variant) -> tuple[list[Tensor], Tensor]:
        """y [S, N] of each site and h [G, S, r], for x [S, K]; a bias that is absent has no name."""
        layer, bound = self.layer, self._bind(operands)
        x = bound["x"]
        h = x.new_empty((layer.sites, len(x), layer.rank), dtype=torch.float32)
        bound |= self._each("h", h) | self._each("t", torch.empty_like(h, dtype=x.dtype))
        self._launch("bottleneck_forward", bound)
        if variant == (KERNEL,):
            y = [x.new_empty((len(x), columns)) for columns in layer.out_features]
            self._launch("linear_up_forward", bound | self._each("y", y))
            return y, h
        y = []
        for site in self._sites:
            weight, up = self._of(bound, "weight", site), self._of(bound, "up", site)
            # The plain layer's own call, then an accumulation: with U = 0 this is the plain layer bit for bit.
            plain = F.linear(x, weight, bound.get(layer.name("bias", site)))
            y.append(plain.addmm_(self._of(bound, "t", site), up.t()))
        return y, h

    # --- backward ----------------------------------------------------------------------------------------------------

    def backward_variants(self, needs: Mapping[str, bool]) -> tuple[list[Variant], Variant]:
        """Every variant of backward with these needs, and the default."""
        inputs = [KERNEL, VENDOR] if needs["x"] else [VENDOR]
        narrow = [name for site in self._sites for name in self._names(site, "up", "down")]
        weights = [VENDOR, KERNEL] if any(needs[name] for name in narrow) else [VENDOR]
        usual = self._product(sum(self.layer.out_features))
        return list(combinations(inputs, weights)), (usual if usual in inputs else VENDOR, weights[-1])

    def backward(
        self, dy: Sequence[Tensor], h: Tensor, operands: Named, needs: Mapping[str, bool], variant: Variant
    ) -> dict[str, Tensor]:
        """A gradient for each operand that needs one, by its name; dy [S, N] of each site, h [G, S, r], x [S, K]."""
        bound = self._bind(operands)
        bound |= self._each("dy", list(map(_dense_rows, dy))) | self._each("h", h.contiguous())
        inputs, weights = variant if len(bound["x"]) else (VENDOR, VENDOR)  # no rows: no launch, and a sum of none
        gradients: dict[str, Tensor] = {}
        if any(need for name, need in needs.items() if not name.startswith(("weight", "bias"))):
            bound |= self._bottleneck(bound)
            gradients = self._row_sums(bound, needs)
            if needs["x"]:
                gradients["x"] = self._input(bound, inputs)
            gradients |= (
                self._branch_weights(bound, needs) if weights == VENDOR else self._branch_weights_at_once(bound)
            )
        for site in self._sites:
            (weight, bias), dy_site = self._names(site, "weight", "bias"), self._of(bound, "dy", site)
            if needs[weight]:
                gradients[weight] = dy_site.t() @ bound["x"]
            if needs[bias] and bias not in gradients:
                gradients[bias] = dy_site.sum(0)
        return {name: gradient for name, gradient in gradients.items() if needs[name]}

    def _bottleneck(self, bound: Named) -> dict[str, Tensor]:
        """What follows from dt = dy U and h alone: t, dh, and what each tile of rows adds to sums over the rows."""
        steps, x, sites = backward_steps(self.plan), bound["x"], self.layer.sites
        results: dict[str, Tensor] = {}
        for name in ("t", "dh"):
            results |= self._each(name, x.new_empty((sites, len(x), self.layer.rank)))
        for name, width in steps.buffers().items():
            results |= self._each(name, x.new_empty((sites, len(x), width), dtype=torch.float32))
        if self.plan.split_backward:
            dt = [self._of(bound, "dy", site) @ self._of(bound, "up", site) for site in self._sites]
            results |= self._each("dt", dt)
        programs = -(-len(x) // self.plan.bottleneck_backward.rows)
        results |= self._each("partials", x.new_empty((sites, programs, steps.width), dtype=torch.float32))
        for step in steps.steps:
            if isinstance(step, Stage):
                self._launch(step.name, {**bound, **results})
            else:
                products = [self._gemm(step, {**bound, **results}, site) for site in self._sites]
                results |= self._each(step.out, products)
        return results

    def _gemm(self, gemm: Gemm, bound: Named, site: int) -> Tensor:
        """A product that stands between two kernels, in float32."""
        left, right = (self._of(bound, name, site).float() for name in (gemm.left, gemm.right))
        left, right = left.t() if gemm.left_transposed else left, right.t() if gemm.right_transposed else right
        bias = self._of(bound, gemm.bias, site).float() if gemm.bias else None
        return left @ right if bias is None else torch.addmm(bias, left, right)

    def _row_sums(self, bound: Named, needs: Mapping[str, bool]) -> dict[str, Tensor]:
        """The gradients of d and of σ's parameters, which are sums over the rows."""
        x = bound["x"]
        gradients: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        sums = [
            (partial, self.layer.name(partial.name, s))
            for partial in backward_steps(self.plan).partials
            for s in self._sites
        ]
        if any(needs[name.removeprefix("d_")] for _, name in sums):
            new = x.new_empty if len(x) else x.new_zeros
            for partial, name in sums:
                dtype = self.layer.dtype if partial.name == "d_down_bias" else self.layer.act_dtype
                outputs[name] = gradients[name.removeprefix("d_")] = new(partial.shape, dtype=dtype)
            if len(x):
                kernel = self.kernels["reduce_partials"]
                launch(self.plan, kernel, 1, {**bound, **outputs}, programs=len(self._of(bound, "partials", 0)))
        for name in self.act:  # the gradients that were products over the rows
            for site in self._sites:
                gradient = bound.get(self.layer.name(f"d_{name}", site))
                if gradient is not None:
                    gradients[self.layer.name(name, site)] = gradient.to(self.layer.act_dtype)
        return gradients

    def _input(self, bound: Named, choice: str) -> Tensor:
        """dx [S, K] = Σ dy W + dh D."""
        if choice == KERNEL:
            dx = torch.empty_like(bound["x"], memory_format=torch.contiguous_format)
            self._launch("linear_backward_input", {**bound, "dx": dx})
            return dx
        dx = self._of(bound, "dy", 0) @ self._of(bound, "weight", 0)
        for site in self._sites:
            if site:
                dx.addmm_(self._of(bound, "dy", site), self._of(bound, "weight", site))
            dx.addmm_(self._of(bound, "dh", site), self._of(bound, "down", site))
        return dx

    def _branch_weights_at_once(self, bound: Named) -> dict[str, Tensor]:
        """dU = dyᵀ t, dD = dhᵀ x and db = Σ dy by one kernel that reads dy once, and one that adds up."""
        layer, x = self.layer, bound["x"]
        sums: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        for site in self._sites:
            width = branch_weights_width(layer, site)
            sums[layer.name("weight_partials", site)] = x.new_empty((SPLITS, width), dtype=torch.float32)
            up, down, bias = self._names(site, "up", "down", "bias")
            gradients |= {up: torch.empty_like(bound[up]), down: torch.empty_like(bound[down])}
            if layer.bias:
                gradients[bias] = x.new_empty(layer.out_features[site])
        self._launch("branch_weight_backward", {**bound, **sums})
        outputs = {f"d_{name}": gradient for name, gradient in gradients.items()}
        self._launch("reduce_branch_weights", {"x": x, **sums, **outputs})
        return gradients

    def _branch_weights(self, bound: Named, needs: Mapping[str, bool]) -> dict[str, Tensor]:
        """dU = dyᵀ t and dD = dhᵀ x by the vendor's GEMMs."""
        gradients = {}
        for site in self._sites:
            up, down = self._names(site, "up", "down")
            if needs[up]:
                gradients[up] = self._of(bound, "dy", site).t() @ self._of(bound, "t", site)
            if needs[down]:
                gradients[down] = self._of(bound, "dh", site).t() @ bound["x"]
        return gradients

    def _product(self, depth: int) -> str:
        """How a product of this depth is run where nothing was measured; full float32 has no tensor cores to win by."""
        full = self.plan.exact and self.plan.precision == "ieee"
        return VENDOR if full or depth > _DEEP else KERNEL

    # --- binding -----------------------------------------------------------------------------------------------------

    def _bind(self, operands: Named) -> dict[str, Tensor]:
        """The operands laid out as the kernels read them."""
        free = {"x", *(self.layer.name("weight", site) for site in self._sites)}  # their strides are arguments
        bound = {name: tensor if name in free else tensor.contiguous() for name, tensor in operands.items()}
        return bound | {"x": _dense_rows(operands["x"])}

    def _each(self, name: str, tensors: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """One tensor a site, by the names that the kernels use."""
        return {self.layer.name(name, site): tensors[site] for site in self._sites}

    def _names(self, site: int, *names: str) -> list[str]:
        return [self.layer.name(name, site) for name in names]

    def _of(self, bound: Named, name: str, site: int) -> Tensor:
        return bound[self.layer.name(name, site)]

    def _launch(self, name: str, bound: Named, **numbers: int) -> None:
        launch(self.plan, self.kernels[name], len(bound["x"]), bound, **numbers)


def _dense_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its rows are not contiguous: kernels take any stride between rows, none within."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()

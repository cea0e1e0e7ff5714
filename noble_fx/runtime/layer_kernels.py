"""One layer by generated kernels, or several that read the same x: forward and backward, every way that is right.

    forward    bottleneck_forward              x -> h, t = σ(h)
               linear_up_forward               y = x Wᵀ + b + t Uᵀ           or the vendor's GEMM, then y += t Uᵀ
    backward   bottleneck_backward             dy, h -> t, dh, and what each tile of rows adds to d and σ's parameters
               reduce_partials                 the sums of those
               linear_backward_input           dx = Σ dy W + dh D            or the vendor's GEMMs, accumulating
               the vendor's GEMM               dW = dyᵀ x
               branch_weight_backward          dU = dyᵀ t, dD = dhᵀ x, db    or the vendor's GEMMs, and a sum

A way is a tuple of words, one for each "or": "kernel" or "vendor". The tensors of a layer are one row, as everywhere in
the runtime: x, W…, b…, D…, d…, U…, σ's…, site after site in each field, None where a site has none.
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
from noble_fx.runtime.autotune import Way
from noble_fx.runtime.launch import launch

KERNEL, VENDOR = "kernel", "vendor"
FIELDS = ("weight", "bias", "down", "down_bias", "up")
# Up to this depth of the main product the pass over y that a second product costs weighs more than the 3 to 14 % that
# a Triton GEMM loses to the vendor's on Hopper: 4 N bytes at 4.8 TB/s against a tenth of 2 K N FLOPs at 700 TFLOP/s.
_DEEP = 2048

Row = Sequence[Tensor | None]
Named = dict[str, Tensor]


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

    def names(self) -> list[str]:
        """What the kernels call the tensors of a row."""
        layer = self.layer
        fields = [layer.name(field, site) for field in FIELDS for site in self._sites]
        return ["x", *fields, *(layer.name(name, site) for site in self._sites for name in self.act)]

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward_ways(self) -> tuple[list[Way], Way]:
        """Every way to run forward, and the default."""
        return [(KERNEL,), (VENDOR,)], (self._product(self.layer.in_features),)

    def forward(self, row: Row, way: Way) -> tuple[list[Tensor], Tensor]:
        """y [S, N] of each site and h [G, S, r], for x [S, K]."""
        layer, given = self.layer, self._bind(row)
        x = given["x"]
        h = x.new_empty((layer.sites, len(x), layer.rank), dtype=torch.float32)
        given |= self._each("h", h) | self._each("t", torch.empty_like(h, dtype=x.dtype))
        self._launch("bottleneck_forward", given)
        if way == (KERNEL,):
            y = [x.new_empty((len(x), columns)) for columns in layer.out_features]
            self._launch("linear_up_forward", given | self._each("y", y))
            return y, h
        y = []
        for site in self._sites:
            weight, up = self._of(given, "weight", site), self._of(given, "up", site)
            # The plain layer's own call, then an accumulation: with U = 0 this is the plain layer bit for bit.
            plain = F.linear(x, weight, given.get(layer.name("bias", site)))
            y.append(plain.addmm_(self._of(given, "t", site), up.t()))
        return y, h

    # --- backward ----------------------------------------------------------------------------------------------------

    def backward_ways(self, needs: Mapping[str, bool]) -> tuple[list[Way], Way]:
        """Every way to run backward with these needs, and the default."""
        inputs = [KERNEL, VENDOR] if needs["x"] else [VENDOR]
        narrow = [name for site in self._sites for name in self._of_layer(site, "up", "down")]
        weights = [VENDOR, KERNEL] if any(needs[name] for name in narrow) else [VENDOR]
        usual = self._product(sum(self.layer.out_features))
        return list(combinations(inputs, weights)), (usual if usual in inputs else VENDOR, weights[-1])

    def backward(
        self, dy: Sequence[Tensor], h: Tensor, row: Row, needs: Sequence[bool], way: Way
    ) -> list[Tensor | None]:
        """One gradient for each tensor of the row, None where `needs` says no; dy [S, N], h [G, S, r], x [S, K]."""
        given, wanted = self._bind(row), dict(zip(self.names(), needs, strict=True))
        given |= self._each("dy", [_dense_rows(one) for one in dy]) | self._each("h", h.contiguous())
        inputs, weights = way if len(given["x"]) else (VENDOR, VENDOR)  # no rows: no launch, and a sum of none
        found: Named = {}
        if any(need for name, need in wanted.items() if not name.startswith(("weight", "bias"))):
            given |= self._bottleneck(given)
            found = self._row_sums(given, wanted)
            if wanted["x"]:
                found["x"] = self._input(given, inputs)
            found |= self._branch_weights(given, wanted) if weights == VENDOR else self._branch_weights_at_once(given)
        for site in self._sites:
            weight, bias, dy_site = *self._of_layer(site, "weight", "bias"), self._of(given, "dy", site)
            if wanted[weight]:
                found[weight] = dy_site.t() @ given["x"]
            if wanted[bias] and bias not in found:
                found[bias] = dy_site.sum(0)
        return [found.get(name) if need else None for name, need in wanted.items()]

    def _bottleneck(self, given: Named) -> Named:
        """What follows from dt = dy U and h alone: t, dh, and what each tile of rows adds to sums over the rows."""
        steps, x, sites = backward_steps(self.plan), given["x"], self.layer.sites
        made: Named = {}
        for name in ("t", "dh"):
            made |= self._each(name, x.new_empty((sites, len(x), self.layer.rank)))
        for name, width in steps.buffers().items():
            made |= self._each(name, x.new_empty((sites, len(x), width), dtype=torch.float32))
        if self.plan.split_backward:
            dt = [self._of(given, "dy", site) @ self._of(given, "up", site) for site in self._sites]
            made |= self._each("dt", dt)
        programs = -(-len(x) // self.plan.bottleneck_backward.rows)
        made |= self._each("partials", x.new_empty((sites, programs, steps.width), dtype=torch.float32))
        for step in steps.steps:
            if isinstance(step, Stage):
                self._launch(step.name, given | made)
            else:
                made |= self._each(step.out, [self._gemm(step, given | made, site) for site in self._sites])
        return made

    def _gemm(self, gemm: Gemm, given: Named, site: int) -> Tensor:
        """A product that stands between two kernels, in float32."""
        left, right = (self._of(given, name, site).float() for name in (gemm.left, gemm.right))
        left, right = left.t() if gemm.left_transposed else left, right.t() if gemm.right_transposed else right
        bias = self._of(given, gemm.bias, site).float() if gemm.bias else None
        return left @ right if bias is None else torch.addmm(bias, left, right)

    def _row_sums(self, given: Named, wanted: Mapping[str, bool]) -> Named:
        """The gradients of d and of σ's parameters, which are sums over the rows."""
        found: Named = {}
        gradients = {}
        for one in backward_steps(self.plan).partials:
            dtype = self.layer.dtype if one.name == "d_down_bias" else self.layer.act_dtype
            for site in self._sites:
                name = self.layer.name(one.name, site)
                gradients[name] = found[name.removeprefix("d_")] = given["x"].new_zeros(one.shape, dtype=dtype)
        if any(wanted[name] for name in found) and len(given["x"]):
            kernel = self.kernels["reduce_partials"]
            launch(self.plan, kernel, 1, given | gradients, programs=len(self._of(given, "partials", 0)))
        for name in self.act:  # the gradients that were products over the rows
            for site in self._sites:
                gradient = given.get(self.layer.name(f"d_{name}", site))
                if gradient is not None:
                    found[self.layer.name(name, site)] = gradient.to(self.layer.act_dtype)
        return found

    def _input(self, given: Named, way: str) -> Tensor:
        """dx [S, K] = Σ dy W + dh D."""
        if way == KERNEL:
            dx = torch.empty_like(given["x"], memory_format=torch.contiguous_format)
            self._launch("linear_backward_input", given | {"dx": dx})
            return dx
        dx = self._of(given, "dy", 0) @ self._of(given, "weight", 0)
        for site in self._sites:
            if site:
                dx.addmm_(self._of(given, "dy", site), self._of(given, "weight", site))
            dx.addmm_(self._of(given, "dh", site), self._of(given, "down", site))
        return dx

    def _branch_weights_at_once(self, given: Named) -> Named:
        """dU = dyᵀ t, dD = dhᵀ x and db = Σ dy by one kernel that reads dy once, and one that adds up."""
        layer, x = self.layer, given["x"]
        sums: Named = {}
        found: Named = {}
        for site in self._sites:
            width = branch_weights_width(layer, site)
            sums[layer.name("weight_partials", site)] = x.new_empty((SPLITS, width), dtype=torch.float32)
            up, down, bias = self._of_layer(site, "up", "down", "bias")
            found |= {up: torch.empty_like(given[up]), down: torch.empty_like(given[down])}
            if layer.bias:
                found[bias] = x.new_empty(layer.out_features[site])
        self._launch("branch_weight_backward", given | sums)
        self._launch("reduce_branch_weights", {"x": x, **sums, **{f"d_{name}": one for name, one in found.items()}})
        return found

    def _branch_weights(self, given: Named, wanted: Mapping[str, bool]) -> Named:
        """dU = dyᵀ t and dD = dhᵀ x by the vendor's GEMMs."""
        found = {}
        for site in self._sites:
            up, down = self._of_layer(site, "up", "down")
            if wanted[up]:
                found[up] = self._of(given, "dy", site).t() @ self._of(given, "t", site)
            if wanted[down]:
                found[down] = self._of(given, "dh", site).t() @ given["x"]
        return found

    def _product(self, depth: int) -> str:
        """How a product of this depth is run where nothing was measured; full float32 has no tensor cores to win by."""
        full = self.plan.exact and self.plan.precision == "ieee"
        return VENDOR if full or depth > _DEEP else KERNEL

    # --- binding -----------------------------------------------------------------------------------------------------

    def _bind(self, row: Row) -> Named:
        """The tensors of a row by name, laid out as the kernels read them."""
        found = {name: one for name, one in zip(self.names(), row, strict=True) if one is not None}
        free = {"x", *(self.layer.name("weight", site) for site in self._sites)}  # their strides are arguments
        bound = {name: one if name in free else one.contiguous() for name, one in found.items()}
        return bound | {"x": _dense_rows(found["x"])}

    def _each(self, name: str, tensors: Sequence[Tensor] | Tensor) -> Named:
        """One tensor a site, by the names that the kernels use."""
        return {self.layer.name(name, site): tensors[site] for site in self._sites}

    def _of_layer(self, site: int, *names: str) -> list[str]:
        return [self.layer.name(name, site) for name in names]

    def _of(self, given: Named, name: str, site: int) -> Tensor:
        return given[self.layer.name(name, site)]

    def _launch(self, name: str, given: Mapping[str, Tensor], **numbers: int) -> None:
        launch(self.plan, self.kernels[name], len(given["x"]), given, **numbers)


def _dense_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its rows are not contiguous: kernels take any stride between rows, none within."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()

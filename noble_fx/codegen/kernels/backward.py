"""The backward kernels.

    bottleneck_backward    dt = dy U,  then σ's vector–Jacobian product: t, dh, and partial sums of σ's gradients
    activation_backward_0  … the same in stages, with the vendor's GEMMs between (a wide bottleneck, `stages.py`)
    linear_backward_input  dx = Σ dy W + dh D in one accumulation

Backward keeps x and h only: σ(h) is computed again.
"""

from __future__ import annotations

from dataclasses import replace

from noble_fx.codegen.kernel import Kernel, shared_operand, site_operand
from noble_fx.codegen.kernels.product import Out, Term, product
from noble_fx.codegen.kernels.stage_kernel import stage_kernel
from noble_fx.codegen.kernels.stages import backward_steps
from noble_fx.codegen.kernels.tma import product_tma
from noble_fx.codegen.plan import DTYPES, Plan


def bottleneck_backward(plan: Plan) -> list[Kernel]:
    """Everything that follows from dy (or, in stages, from dt) and h alone."""
    steps = backward_steps(plan)
    return [stage_kernel(plan, stage, steps.width) for stage in steps.stages]


def linear_backward_input(plan: Plan, tma: bool = False) -> Kernel:
    """dx = Σ over the sites of dy W + dh D, in one accumulation; `tma`: by tensor descriptors."""
    layer, kind, inputs, rank = plan.layer, DTYPES[plan.layer.dtype], plan.layer.in_features, plan.layer.rank
    terms = []
    for site, columns in enumerate(layer.out_features):
        dy = site_operand(layer, site, "dy", kind, ("rows", columns))
        weight = site_operand(layer, site, "weight", kind, (columns, inputs))
        dh = site_operand(layer, site, "dh", kind, ("rows", rank))
        down = site_operand(layer, site, "down", kind, (rank, inputs))
        terms.append(Term(dy, weight, columns, transposed=False, strided=True))
        terms.append(Term(dh, down, rank, transposed=False, strided=False))
    out = Out(shared_operand("dx", kind, ("rows", inputs), written=True), inputs, tuple(terms))
    title = "dx = dy W + dh D" if layer.sites == 1 else "dx = Σ (dy W + dh D) over the sites"
    if tma:
        tile = plan.linear_backward_input
        if plan.layer.sites > 1:  # the loops over the sites have buffers of their own, which would not fit a block
            tile = replace(tile, stages=min(tile.stages, 2))
        return product_tma(plan, tile, "linear_backward_input_tma", title, (out,))
    return product(plan, plan.linear_backward_input, "linear_backward_input", title, (out,))

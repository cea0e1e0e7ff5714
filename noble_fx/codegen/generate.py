"""Every kernel of a plan, by name: read this file first to see what a layer runs on a GPU."""

from __future__ import annotations

import functools

from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.kernels.backward import bottleneck_backward, linear_backward_input
from noble_fx.codegen.kernels.branch_first import branch_first_kernels
from noble_fx.codegen.kernels.branch_weights import branch_weight_backward, reduce_branch_weights
from noble_fx.codegen.kernels.forward import bottleneck_forward, linear_up_forward
from noble_fx.codegen.kernels.reduce import Gradient, reduce_partials
from noble_fx.codegen.kernels.stage_kernel import stage_kernel
from noble_fx.codegen.kernels.stages import backward_steps, forward_steps
from noble_fx.codegen.plan import DTYPES, Plan


@functools.lru_cache(maxsize=256)
def generate(plan: Plan) -> dict[str, Kernel]:
    """All kernels of this plan; raises `KernelError` with the reason where σ cannot be lowered."""
    kernels = [
        *_bottleneck_forward(plan),
        linear_up_forward(plan),
        *bottleneck_backward(plan),
        linear_backward_input(plan),
        branch_weight_backward(plan),
        reduce_branch_weights(plan),
        *branch_first_kernels(plan),
        *([linear_up_forward(plan, tma=True), linear_backward_input(plan, tma=True)] if plan.tma else []),
    ]
    if partials := backward_steps(plan).partials:
        own, theirs = DTYPES[plan.layer.dtype], DTYPES[plan.layer.act_dtype]
        gradients = [
            Gradient(partial.name, partial.shape, own if partial.name == "d_down_bias" else theirs)
            for partial in partials
        ]
        note = "a row is the share of one tile of rows"
        sites = [gradients] * plan.layer.sites
        kernels.append(reduce_partials("reduce_partials", plan.layer, "partials", sites, note, "programs"))
    return {kernel.name: kernel for kernel in kernels}


def _bottleneck_forward(plan: Plan) -> list[Kernel]:
    """What makes h and t of x: one kernel, or stages between the vendor's GEMMs."""
    if not plan.split_forward:
        return [bottleneck_forward(plan)]
    return [stage_kernel(plan, stage) for stage in forward_steps(plan.layer).stages]

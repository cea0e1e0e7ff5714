"""Every kernel of a plan, by name: read this file first to see what a layer runs on a GPU."""

from __future__ import annotations

from noble_fx.codegen.forward import linear_up_forward
from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import Plan


def generate(plan: Plan) -> dict[str, Kernel]:
    """All kernels of this plan; raises `KernelError` with the reason where σ cannot be lowered."""
    kernels = [linear_up_forward(plan)]
    return {kernel.name: kernel for kernel in kernels}

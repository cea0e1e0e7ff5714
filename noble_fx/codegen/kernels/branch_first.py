"""Branch first: kernels make the branch's part of a wide result, and the vendor's GEMM adds the main product to it.

    branch_first_forward    x → h and y0 = t Uᵀ + b;               then y = y0 + x Wᵀ, in place
    branch_first_backward   dy, h → t, dh, …, and dx0 = dh D;      then dx = dx0 + dy W, in place
    branch_first_input      dh → dx0 = Σ dh D, for several sites or where backward is cut

The GEMM reads what it adds to in its last step, so nothing but that is read again, and t is never written in forward.
"""

from __future__ import annotations

from dataclasses import replace

from noble_fx.codegen.kernel import Kernel, Operand, shared_operand, site_operand
from noble_fx.codegen.kernels.forward import bottleneck, site_name
from noble_fx.codegen.kernels.product import Out, Term, product
from noble_fx.codegen.kernels.rows import Wide, wide_product
from noble_fx.codegen.kernels.stage_kernel import stage_kernel
from noble_fx.codegen.kernels.stages import backward_steps
from noble_fx.codegen.plan import DTYPES, Plan
from noble_fx.codegen.sigma.in_kernel import Sigma


def branch_first_kernels(plan: Plan) -> list[Kernel]:
    """Those that this plan has; where forward or backward is cut, the part that would be at its end is left out."""
    kernels = [] if plan.split_forward else [branch_first_forward(plan)]
    if plan.layer.sites == 1 and not plan.split_backward:
        kernels.append(branch_first_backward(plan))
    return [*kernels, branch_first_input(plan)]


def branch_first_forward(plan: Plan) -> Kernel:
    """h = x Dᵀ + d and y0 = σ(h) Uᵀ + b, for every site of x; t stays in registers."""
    layer, kind = plan.layer, DTYPES[plan.layer.dtype]

    def tensors(site: int) -> list[Operand]:
        columns = layer.out_features[site]
        up = site_operand(layer, site, "up", kind, (columns, layer.rank))
        bias = [site_operand(layer, site, "bias", kind, (columns,))] if layer.bias else []
        note = "y0, to which the vendor's GEMM adds x Wᵀ"
        return [up, *bias, site_operand(layer, site, "y", kind, ("rows", columns), written=True, note=note)]

    def finish(sigma: Sigma, t: str) -> None:
        up, y, bias = (site_name(layer, tensor, sigma.site) for tensor in ("up", "y", "bias"))
        columns = "columns" if sigma.site is None else layer.out_features[sigma.site]
        sigma.source.paragraph(f"y0 = {t} · {up}ᵀ{' + b' if layer.bias else ''}, one tile of columns at a time")
        wide_product(sigma, 0, t, Wide(up, y, columns, transposed=True, bias=bias if layer.bias else ""))

    title = "t = σ(h),  y0 = t Uᵀ + b" if layer.bias else "t = σ(h),  y0 = t Uᵀ"
    flops = 2 * layer.rank * sum(layer.out_features)
    return bottleneck(plan, "branch_first_forward", title, tensors, finish, flops)


def branch_first_backward(plan: Plan) -> Kernel:
    """`bottleneck_backward` that makes dx0 = dh D while it has dh: for one site whose backward is one kernel."""
    steps = backward_steps(plan)
    (stage,) = steps.stages
    return stage_kernel(plan, stage, steps.width, input_too=True)


def branch_first_input(plan: Plan) -> Kernel:
    """dx0 = Σ over the sites of dh D."""
    layer, kind, inputs, rank = plan.layer, DTYPES[plan.layer.dtype], plan.layer.in_features, plan.layer.rank
    terms = []
    for site in range(layer.sites):
        dh = site_operand(layer, site, "dh", kind, ("rows", rank))
        down = site_operand(layer, site, "down", kind, (rank, inputs))
        terms.append(Term(dh, down, rank, transposed=False, strided=False))
    dx = shared_operand("dx", kind, ("rows", inputs), written=True)
    title = "dx0 = dh D" if layer.sites == 1 else "dx0 = Σ dh D over the sites"
    tile = plan.linear_backward_input
    if plan.exact and layer.sites > 1:  # operands are in registers, those of several sites at once
        tile = replace(tile, columns=min(tile.columns, 64))
    return product(plan, tile, "branch_first_input", title, (Out(dx, inputs, tuple(terms)),))

"""The forward kernels: bottleneck_forward (x → h, t) and linear_up_forward (y = x Wᵀ + b + t Uᵀ)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from noble_fx.codegen.code import Code
from noble_fx.codegen.header import backend_line, header
from noble_fx.codegen.kernel import Argument, Kernel, Operand, moved_bytes, shared_operand, site_operand
from noble_fx.codegen.kernels.product import Out, Term, product
from noble_fx.codegen.kernels.rows import (
    Narrow,
    begin_rows,
    choose_site,
    narrow_products,
    store_result,
    store_rows,
)
from noble_fx.codegen.kernels.tma import product_tma
from noble_fx.codegen.plan import DTYPES, Layer, Plan
from noble_fx.codegen.sigma.formula import formula
from noble_fx.codegen.sigma.in_kernel import Sigma, activation, tensor_name, tensor_operands
from noble_fx.codegen.sigma.lower import outputs_of
from noble_fx.codegen.sigma.tiles import tile_name
from noble_fx.codegen.source import Source


def bottleneck_forward(plan: Plan) -> Kernel:
    """h = x Dᵀ + d and t = σ(h), for every site of x in one pass over it."""
    layer = plan.layer

    def written(site: int) -> list[Operand]:
        return [site_operand(layer, site, "t", DTYPES[layer.dtype], ("rows", layer.rank), written=True)]

    def store(sigma: Sigma, t: str) -> None:
        store_result(sigma, 0, t)

    return bottleneck(plan, "bottleneck_forward", "t = σ(h)", written, store)


def bottleneck(
    plan: Plan,
    name: str,
    title: str,
    tensors: Callable[[int], list[Operand]],
    finish: Callable[[Sigma, str], None],
    flops: int = 0,
) -> Kernel:
    """A kernel that makes h, written, and t = σ(h), which `finish` turns into `tensors` of each site."""
    layer, tile, source = plan.layer, plan.bottleneck_forward, Source()
    program = activation(layer)
    graph, names = program.forward.graph, ("h", *map(tensor_name, program.names))
    operands = _operands(plan, graph, names, tensors)
    arguments = [*(operand.pointer for operand in operands), Argument("rows", "i32"), operands[0].stride(0)]
    layout = [
        f"one program: {tile.rows} rows{_held(plan)}, steps of {tile.depth}",
        backend_line(plan, tile.warps, tile.stages),
    ]
    h = "h = x Dᵀ + d" if layer.down_bias else "h = x Dᵀ"
    source.head(header(f"{name}: {h},  {title}", formula(layer.act, layer.rank), operands, layout))
    with source.function(name, arguments):
        sites: Sequence[int | None] = range(layer.sites)
        place = "tl.program_id(0)"
        if not plan.one_pass:
            source.paragraph("which site; its tensors take the names without a number")
            source.line(f"site = {place} % {layer.sites}")
            named = any(operand.tensor == "y" for operand in operands)
            choose_site(source, layer, arguments, [f"columns = {n}" for n in layer.out_features] if named else ())
            sites, place = [None], f"({place} // {layer.sites})"
        source.paragraph("the rows of this program; what is read past the end is not stored")
        begin_rows(source, tile.rows, place)
        t = outputs_of(graph)[0]
        sigmas = [Sigma(plan, source, tile, graph, names, site, {t: site_name(layer, "t", site)}) for site in sites]
        segments = tuple(sigmas[0].segments(sigmas[0].inputs["h"]))
        source.paragraph("h = x Dᵀ, accumulated in float32")
        outs = [Narrow(site_name(layer, "h", site), site_name(layer, "down", site), segments) for site in sites]
        narrow_products(source, plan, tile, "x", layer.in_features, outs, transposed=True)
        for sigma in sigmas:
            _site(sigma)
            finish(sigma, site_name(layer, "t", sigma.site))
    per_row, once = moved_bytes(operands)
    return Kernel(
        name=name,
        source=str(source),
        arguments=tuple(arguments),
        row_tile=tile.rows,
        blocks=1 if plan.one_pass else layer.sites,
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * layer.sites * layer.rank * layer.in_features + flops,
        bytes_per_row=per_row,
        bytes_once=once,
    )


def _operands(
    plan: Plan, graph: fx.Graph, names: Sequence[str], tensors: Callable[[int], list[Operand]]
) -> list[Operand]:
    layer, kind, rank = plan.layer, DTYPES[plan.layer.dtype], plan.layer.rank
    operands = [shared_operand("x", kind, ("rows", layer.in_features))]
    for site in range(layer.sites):
        operands.append(site_operand(layer, site, "down", kind, (rank, layer.in_features)))
        if layer.down_bias:
            operands.append(site_operand(layer, site, "down_bias", kind, (rank,)))
        operands += tensor_operands(layer, graph, names, site)
        operands.append(site_operand(layer, site, "h", "fp32", ("rows", rank), written=True, note="kept for backward"))
        operands += tensors(site)
    return operands


def site_name(layer: Layer, tensor: str, site: int | None) -> str:
    """A site's tensor, by the name without a number where a program has one site."""
    return tensor if site is None else layer.name(tensor, site)


def _held(plan: Plan) -> str:
    sites = plan.layer.sites
    return f", {sites} site{'s' * (sites > 1)}" if plan.one_pass else " of one site"


def _site(sigma: Sigma) -> None:
    layer, source, node = sigma.plan.layer, sigma.source, sigma.inputs["h"]
    h, t, bias = (site_name(layer, tensor, sigma.site) for tensor in ("h", "t", "down_bias"))
    segments = sigma.segments(node)
    source.paragraph(f"{h}{' with its bias' if layer.down_bias else ''}, for backward")
    for segment in segments:
        name, index = tile_name(h, segment, segments), sigma.low.index(segment)
        if layer.down_bias:
            masked = sigma.low.bound(segment).argument(source.line, "0.0")
            source.line(f"{name} += tl.load({bias}_ptr + {index}{masked}).to(tl.float32)[None, :]")
        store_rows(sigma, h, segment, layer.rank, Code.name(name))
    sigma.bind(node, h)
    source.paragraph(f"{t} = σ({h}), as PyTorch traced it")
    sigma.low.write()


def linear_up_forward(plan: Plan, tma: bool = False) -> Kernel:
    """y = x Wᵀ + b + t Uᵀ in one accumulation, for every site in one launch; `tma`: by tensor descriptors."""
    layer, kind, inputs, rank = plan.layer, DTYPES[plan.layer.dtype], plan.layer.in_features, plan.layer.rank
    x = shared_operand("x", kind, ("rows", inputs))

    def out(site: int) -> Out:
        columns = layer.out_features[site]
        weight = site_operand(layer, site, "weight", kind, (columns, inputs))
        up = site_operand(layer, site, "up", kind, (columns, rank))
        t = site_operand(layer, site, "t", kind, ("rows", rank))
        bias = site_operand(layer, site, "bias", kind, (columns,)) if layer.bias else None
        y = site_operand(layer, site, "y", kind, ("rows", columns), written=True)
        terms = (
            Term(x, weight, inputs, transposed=True, strided=True),
            Term(t, up, rank, transposed=True, strided=False),
        )
        return Out(y, columns, terms, bias)

    outs = tuple(out(site) for site in range(layer.sites))
    title = "y = x Wᵀ + b + t Uᵀ" if layer.bias else "y = x Wᵀ + t Uᵀ"
    if tma:
        return product_tma(plan, plan.linear_up_forward, "linear_up_forward_tma", title, outs)
    return product(plan, plan.linear_up_forward, "linear_up_forward", title, outs)

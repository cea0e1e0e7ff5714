"""The forward kernels: bottleneck_forward (x → h, t) and linear_up_forward (y = x Wᵀ + b + t Uᵀ)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.kernels.product import Out, Term, product
from noble_fx.codegen.plan import DTYPES, GENERATOR, Plan
from noble_fx.codegen.sigma.in_kernel import (
    Narrow,
    Sigma,
    activation,
    begin_rows,
    narrow_products,
    store_rows,
    tensor_arguments,
    tensor_name,
    tile_name,
)
from noble_fx.codegen.source import Source


def bottleneck_forward(plan: Plan) -> Kernel:
    """h = x Dᵀ + d and t = σ(h), for every site of x in one pass over it."""
    layer, tile, source = plan.layer, plan.bottleneck_forward, Source()
    dtype = DTYPES[layer.dtype]
    program = activation(layer)
    graph, names = program.forward.graph, ("h", *map(tensor_name, program.names))
    arguments = _arguments(plan, graph, names)
    source.header(
        f"bottleneck_forward: {'h = x Dᵀ + d' if layer.down_bias else 'h = x Dᵀ'},  t = σ(h)",
        [
            f"x [rows, {layer.in_features}] {dtype}   D [{layer.rank}, {layer.in_features}]   σ: {layer.act}",
            f"h [rows, {layer.rank}] float32, kept for backward   t [rows, {layer.rank}] {dtype}",
            f"one program: {tile.rows} rows, {layer.sites} site{'s' * (layer.sites > 1)}, steps of {tile.depth}",
            f"{plan.backend} · {tile.warps} warps · {tile.stages} stages · generator {GENERATOR}",
        ],
    )
    with source.function("bottleneck_forward", arguments):
        source.paragraph("the rows of this program; what is read past the end is not stored")
        begin_rows(source, tile.rows, "tl.program_id(0)")
        sigmas = [
            Sigma(plan, source, tile, graph, names, site if layer.sites > 1 else None) for site in range(layer.sites)
        ]
        h = [layer.name("h", site) for site in range(layer.sites)]
        segments = tuple(sigmas[0].segments(sigmas[0].low.inputs[0]))
        source.paragraph("h = x Dᵀ, accumulated in float32")
        outs = [Narrow(h[site], layer.name("down", site), segments) for site in range(layer.sites)]
        narrow_products(source, plan, tile, "x", str(layer.in_features), outs, transposed=True)
        for site, sigma in enumerate(sigmas):
            _site(plan, source, sigma, h[site], site)
    down = layer.sites * layer.rank * layer.in_features
    return Kernel(
        name="bottleneck_forward",
        source=str(source),
        arguments=tuple(arguments),
        row_tile=tile.rows,
        blocks=1,
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * down,
        bytes_per_row=layer.dtype.itemsize * layer.in_features + layer.sites * layer.rank * (4 + layer.dtype.itemsize),
        bytes_once=layer.dtype.itemsize * down,
    )


def _arguments(plan: Plan, graph: fx.Graph, names: Sequence[str]) -> list[Argument]:
    layer, element = plan.layer, f"*{DTYPES[plan.layer.dtype]}"
    arguments = [Argument("x_ptr", element)]
    for site in range(layer.sites):
        arguments.append(Argument(f"{layer.name('down', site)}_ptr", element))
        if layer.down_bias:
            arguments.append(Argument(f"{layer.name('down_bias', site)}_ptr", element))
        arguments += tensor_arguments(layer, graph, names, site)
        arguments.append(Argument(f"{layer.name('h', site)}_ptr", "*fp32"))
        arguments.append(Argument(f"{layer.name('t', site)}_ptr", element))
    return [*arguments, Argument("rows", "i32"), Argument("x_stride_0", "i32")]


def _site(plan: Plan, source: Source, sigma: Sigma, h: str, site: int) -> None:
    layer, node = plan.layer, sigma.low.inputs[0]
    segments = sigma.segments(node)
    source.paragraph(f"{h}{' with its bias' if layer.down_bias else ''}, for backward")
    for segment in segments:
        name, index = tile_name(h, segment, segments), sigma.low.index(segment)
        mask = sigma.low.bound(segment)
        if layer.down_bias:
            masked = f", mask={mask}, other=0.0" if mask else ""
            bias = f"tl.load({layer.name('down_bias', site)}_ptr + {index}{masked}).to(tl.float32)"
            source.line(f"{name} += {bias}[None, :]")
        inside = f"live[:, None] & ({sigma.low.bound(segment, '[None, :]')})" if mask else ""
        store_rows(source, h, f"{index}[None, :]", layer.rank, name, inside)
    sigma.bind(node, h)
    source.paragraph("σ, as PyTorch traced it")
    sigma.low.write()
    source.paragraph(f"{layer.name('t', site)} = σ({h})")
    sigma.store_rows(sigma.low.outputs[0], layer.name("t", site))


def linear_up_forward(plan: Plan) -> Kernel:
    """y = x Wᵀ + b + t Uᵀ in one accumulation, for every site in one launch."""
    layer = plan.layer

    def out(site: int) -> Out:
        weight, up, t = (layer.name(tensor, site) for tensor in ("weight", "up", "t"))
        main = Term("x", weight, layer.in_features, transposed=True, strided=True)
        small = Term(t, up, layer.rank, transposed=True, strided=False)
        bias = layer.name("bias", site) if layer.bias else ""
        return Out(layer.name("y", site), layer.out_features[site], (main, small), bias)

    outs = tuple(out(site) for site in range(layer.sites))
    title = "y = x Wᵀ + b + t Uᵀ" if layer.bias else "y = x Wᵀ + t Uᵀ"
    return product(plan, plan.linear_up_forward, "linear_up_forward", title, outs)

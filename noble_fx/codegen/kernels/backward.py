"""The backward kernels.

    bottleneck_backward    dt = dy U,  then σ's vector–Jacobian product: t, dh, and partial sums of σ's gradients
    activation_backward_0  … the same in stages, with the vendor's GEMMs between (a wide bottleneck, `stages.py`)
    linear_backward_input  dx = Σ dy W + dh D in one accumulation

Backward keeps x and h only: σ(h) is computed again. Every tile of rows writes its own partial sums and
`reduce_partials` adds them, so results do not depend on the order in which programs finish.
"""

from __future__ import annotations

from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.kernels.product import Out, Term, product
from noble_fx.codegen.kernels.stages import Partial, Stage, backward_steps
from noble_fx.codegen.plan import DTYPES, GENERATOR, Plan
from noble_fx.codegen.sigma.in_kernel import Narrow, Sigma, begin_rows, narrow_products, tensor_arguments
from noble_fx.codegen.source import Source


def bottleneck_backward(plan: Plan) -> list[Kernel]:
    """Everything that follows from dy (or, in stages, from dt) and h alone."""
    return [_stage_kernel(plan, stage) for stage in backward_steps(plan).stages]


def _stage_kernel(plan: Plan, stage: Stage) -> Kernel:
    layer, tile, source = plan.layer, plan.bottleneck_backward, Source()
    fused = not plan.split_backward
    arguments = _arguments(plan, stage)
    source.header(_title(plan, stage), _facts(plan, stage))
    with source.function(stage.name, arguments):
        _place(plan, source, arguments)
        sigma = Sigma(plan, source, tile, stage.graph, stage.inputs)
        if fused:
            source.paragraph("dt = dy U, accumulated in float32")
            depth = str(layer.out_features[0]) if len(set(layer.out_features)) == 1 else "columns"
            outs = [Narrow("dt", "up", tuple(sigma.segments(sigma.inputs["dt"])))]
            narrow_products(source, plan, tile, "dy", depth, outs, transposed=False)
        given = [name for name in stage.rows if name != "dt" or not fused]
        source.paragraph(", ".join(given))
        for name in given:
            sigma.load_rows(name)
        for name in stage.rows:
            sigma.bind(sigma.inputs[name], name)
        source.paragraph("σ and its vector–Jacobian product, as PyTorch traced and differentiated them")
        sigma.low.write()
        if stage.stores:
            source.paragraph("results for what comes next: t for dU, dh for dD and dx, operands of products")
        for output, tensor, _ in stage.stores:
            sigma.store_rows(sigma.low.outputs[output], tensor)
        _store_partials(plan, source, sigma, stage)
    up = layer.rank * sum(layer.out_features) if fused else 0
    wide = layer.dtype.itemsize * (sum(layer.out_features) if fused else 0)
    narrow = 4 * layer.rank * len(stage.rows) + layer.dtype.itemsize * sum(width for _, _, width in stage.stores)
    return Kernel(
        name=stage.name,
        source=str(source),
        arguments=tuple(arguments),
        row_tile=tile.rows,
        blocks=layer.sites,
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * up,
        bytes_per_row=wide + layer.sites * narrow,
        bytes_once=layer.dtype.itemsize * up,
    )


def _title(plan: Plan, stage: Stage) -> str:
    if not plan.split_backward:
        return f"{stage.name}: dt = dy U,  (t, dh, dσ) = σ and its vjp at h"
    made = [name for _, name, _ in stage.stores] + [one.name for _, one in stage.sums]
    return f"{stage.name}: one stage of σ's vjp at h: {', '.join(made)}"


def _facts(plan: Plan, stage: Stage) -> list[str]:
    layer, tile, dtype = plan.layer, plan.bottleneck_backward, DTYPES[plan.layer.dtype]
    width = backward_steps(plan).width
    given = f"h [rows, {layer.rank}] float32   σ: {layer.act}"
    if not plan.split_backward:
        columns = " | ".join(map(str, layer.out_features))
        given = f"dy [rows, {columns}] {dtype}   U [{columns}, {layer.rank}]   " + given
    sums = f"   partials [programs, {width}] float32, one row a tile" if stage.sums else ""
    return [
        given,
        "   ".join(f"{name} [rows, {columns}]" for _, name, columns in stage.stores) + sums,
        f"one program: {tile.rows} rows of one site" + ("" if plan.split_backward else f", steps of {tile.depth}"),
        f"{plan.backend} · {tile.warps} warps · {tile.stages} stages · generator {GENERATOR}",
    ]


def _arguments(plan: Plan, stage: Stage) -> list[Argument]:
    layer, element = plan.layer, f"*{DTYPES[plan.layer.dtype]}"
    kinds = {"t": element, "dh": element, "dt": element}
    arguments = []
    for site in range(layer.sites):

        def pointer(tensor: str, site: int = site) -> Argument:
            return Argument(f"{layer.name(tensor, site)}_ptr", kinds.get(tensor, "*fp32"))

        if not plan.split_backward:
            arguments += [Argument(f"{layer.name(tensor, site)}_ptr", element) for tensor in ("dy", "up")]
        arguments += [pointer(name) for name in stage.rows if name != "dt" or plan.split_backward]
        arguments += tensor_arguments(layer, stage.graph, stage.inputs, site)
        arguments += [pointer(name) for _, name, _ in stage.stores]
        arguments += [pointer("partials")] if stage.sums else []
    arguments.append(Argument("rows", "i32"))
    if not plan.split_backward:
        arguments += [Argument(f"{layer.name('dy', site)}_stride_0", "i32") for site in range(layer.sites)]
    return arguments


def _place(plan: Plan, source: Source, arguments: list[Argument]) -> None:
    layer, tile = plan.layer, plan.bottleneck_backward
    if layer.sites == 1:
        source.paragraph("the rows of this program; what is read past the end is masked in every sum")
        source.line("row_tile = tl.program_id(0)")
        begin_rows(source, tile.rows, "row_tile")
        return
    source.paragraph("which site; its tensors take the names without a number")
    source.line(f"row_tiles = tl.cdiv(rows, {tile.rows})")
    source.line("row_tile = tl.program_id(0) % row_tiles")
    source.line("site = tl.program_id(0) // row_tiles")
    names = [one.name for one in arguments if "_0_ptr" in one.name or "_0_stride" in one.name]
    for site in range(layer.sites):
        head = f"if site == {site}" if site == 0 else "else" if site == layer.sites - 1 else f"elif site == {site}"
        with source.block(head):
            for name in names:
                mine = name.replace("_0_ptr", "_ptr").replace("_0_stride", "_stride")
                given = name.replace("_0_ptr", f"_{site}_ptr").replace("_0_stride", f"_{site}_stride")
                source.line(f"{mine} = {given}")
            if not plan.split_backward and len(set(layer.out_features)) > 1:
                source.line(f"columns = {layer.out_features[site]}")
    source.paragraph("the rows of this program; what is read past the end is masked in every sum")
    begin_rows(source, tile.rows, "row_tile")


def _store_partials(plan: Plan, source: Source, sigma: Sigma, stage: Stage) -> None:
    if not stage.sums:
        return
    source.paragraph("this tile's share of the gradients that are summed over the rows")
    source.line(f"partials_row_ptr = partials_ptr + row_tile.to(tl.int64) * {backward_steps(plan).width}")
    for output, one in stage.sums:
        value = sigma.low.value(sigma.low.outputs[output])
        for place in sigma.low.places(value):
            if one.name == "d_down_bias":  # dh itself, not yet summed
                text, place = f"tl.sum({sigma.low.masked(value, place, [0])}, axis=0)", (place[1],)
            else:
                text = sigma.low.solid(value.tiles[place], place)
            _store(source, sigma, one, place, text)


def _store(source: Source, sigma: Sigma, one: Partial, place: tuple, text: str) -> None:
    base = f"partials_row_ptr + {one.offset}" if one.offset else "partials_row_ptr"
    address, mask = sigma.address(base, place, one.shape)
    if "&" in mask:
        source.line(f"inside = {mask}")
        mask = "inside"
    source.line(f"tl.store({address}, {text}{f', mask={mask}' if mask else ''})")


def linear_backward_input(plan: Plan) -> Kernel:
    """dx = Σ over the sites of dy W + dh D, in one accumulation."""
    layer = plan.layer
    terms = []
    for site in range(layer.sites):
        dy, weight, dh, down = (layer.name(tensor, site) for tensor in ("dy", "weight", "dh", "down"))
        terms.append(Term(dy, weight, layer.out_features[site], transposed=False, strided=True))
        terms.append(Term(dh, down, layer.rank, transposed=False, strided=False))
    out = Out("dx", layer.in_features, tuple(terms))
    return product(plan, plan.linear_backward_input, "linear_backward_input", "dx = dy W + dh D", (out,))

"""One stage of σ's graphs (`stages.py`) as a kernel.

A stage in which no channel meets another is written for one tile of channels, and the grid walks over them: its lines
stand there once, not once for every tile of the bottleneck. Every tile of rows writes its own partial sums, and
`reduce_partials` adds them, so results do not depend on the order in which programs finish.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from noble_fx.codegen.code import Code
from noble_fx.codegen.header import backend_line, header
from noble_fx.codegen.kernel import Argument, Kernel, Operand, moved_bytes, shared_operand, site_operand
from noble_fx.codegen.kernels.rows import (
    Narrow,
    Wide,
    begin_rows,
    choose_site,
    load_rows,
    narrow_products,
    store_result,
    wide_product,
)
from noble_fx.codegen.kernels.stages import Partial, Stage
from noble_fx.codegen.plan import DTYPES, Plan, widest_tile
from noble_fx.codegen.sigma.formula import formula
from noble_fx.codegen.sigma.in_kernel import Sigma, tensor_operands
from noble_fx.codegen.sigma.lower import outputs_of
from noble_fx.codegen.sigma.operators.pointwise import aten
from noble_fx.codegen.sigma.tiles import Place, solid
from noble_fx.codegen.source import Source


def stage_kernel(plan: Plan, stage: Stage, width: int = 0, input_too: bool = False) -> Kernel:
    """A stage as a kernel; `width`: numbers in a row of the partial sums of all its graph's stages.

    `input_too`: of one site, dx0 = dh D as well, as `branch_first_backward`.
    """
    layer, tile, source = plan.layer, plan.bottleneck_backward, Source()
    name, kind, inputs = "branch_first_backward" if input_too else stage.name, DTYPES[layer.dtype], layer.in_features
    operands = [operand for site in range(layer.sites) for operand in _operands(plan, stage, site, width)]
    if input_too:
        note = "dx0, to which the vendor's GEMM adds dy W"
        operands.append(site_operand(layer, 0, "down", kind, (layer.rank, inputs)))
        operands.append(replace(shared_operand("dx", kind, ("rows", inputs), written=True), note=note))
    arguments = [*(operand.pointer for operand in operands), Argument("rows", "i32")]
    arguments += [operand.stride(0) for operand in operands if operand.tensor == "dy"]
    sigma = Sigma(plan, source, tile, stage.graph, stage.inputs, results=_results(stage), walk=not stage.fused)
    layout = _layout(plan, stage, sigma.low.channel_tiles)
    title = f"{name}{_title(stage)}{',  dx0 = dh D' if input_too else ''}"
    source.head(header(title, formula(layer.act, layer.rank), operands, layout))
    with source.function(name, arguments):
        _place(plan, source, stage, arguments, sigma.low.channel_tiles)
        _body(plan, source, sigma, stage)
        _store_partials(source, sigma, stage, width)
        if input_too:
            source.paragraph("dx0 = dh D, one tile of columns at a time")
            wide_product(sigma, 1, "dh", Wide("down", "dx", inputs, transposed=False))
    per_row, once = moved_bytes(operands)
    return Kernel(
        name=name,
        source=str(source),
        arguments=tuple(arguments),
        row_tile=tile.rows,
        blocks=layer.sites * sigma.low.channel_tiles,
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * layer.rank * (stage.fused * sum(layer.out_features) + input_too * inputs),
        bytes_per_row=per_row,
        bytes_once=once,
    )


def _body(plan: Plan, source: Source, sigma: Sigma, stage: Stage) -> None:
    layer = plan.layer
    if stage.fused:
        source.paragraph("dt = dy U, accumulated in float32")
        depth = layer.out_features[0] if len(set(layer.out_features)) == 1 else "columns"
        outs = [Narrow("dt", "up", tuple(sigma.segments(sigma.inputs["dt"])))]
        narrow_products(source, plan, plan.bottleneck_backward, "dy", depth, outs, transposed=False)
    read = [name for name in stage.rows if name != "dt" or not stage.fused]
    source.paragraph(", ".join(read))
    for name in read:
        load_rows(sigma, name)
    for name in stage.rows:
        sigma.bind(sigma.inputs[name], name)
    source.paragraph("σ and its vector–Jacobian product, as PyTorch traced and differentiated them")
    sigma.low.write()
    if stage.stores:
        uses = {"t": "t for dU", "dh": "dh for dD and dx"}
        source.paragraph(", ".join(uses.get(tensor, f"{tensor} for a GEMM") for _, tensor, _ in stage.stores))
    for output, tensor, _ in stage.stores:
        store_result(sigma, output, tensor)


def _results(stage: Stage) -> dict[fx.Node, str]:
    """The names of the results in the kernel: those of the tensors and gradients that they become."""
    outputs = [_untransposed(node) for node in outputs_of(stage.graph)]
    gradients = {outputs[at]: partial.name for at, partial in stage.sums if partial.name != "d_down_bias"}
    return gradients | {outputs[at]: tensor for at, tensor, _ in stage.stores}


def _untransposed(node: Any) -> Any:
    """The value that is named: PyTorch's gradient of a product is transposed there and back, which writes no line."""
    while node.target is aten.t.default and node.args[0].target is aten.t.default:
        node = node.args[0].args[0]
    return node


def _title(stage: Stage) -> str:
    if stage.fused:
        return ": dt = dy U,  (t, dh, dσ) = σ and its vjp at h"
    results = [name for _, name, _ in stage.stores] + [partial.name for _, partial in stage.sums]
    graph = "σ's vjp" if stage.name.startswith("activation_backward") else "σ"
    return f": one stage of {graph} at h: {', '.join(results)}"


def _layout(plan: Plan, stage: Stage, channel_tiles: int) -> list[str]:
    tile = plan.bottleneck_backward
    steps = f", steps of {tile.depth}" if stage.fused else ""
    channels = f" × {widest_tile(plan.layer.rank)} channels" if channel_tiles > 1 else ""
    return [
        f"one program: {tile.rows} rows{channels} of one site{steps}",
        backend_line(plan, tile.warps, tile.stages),
    ]


def _operands(plan: Plan, stage: Stage, site: int, width: int) -> list[Operand]:
    layer, kind = plan.layer, DTYPES[plan.layer.dtype]
    columns = layer.out_features[site]
    stored = {name: channels for _, name, channels in stage.stores}

    def rows(tensor: str, channels: int) -> Operand:
        own = kind if tensor in ("dy", "t", "dh", "dt") else "fp32"
        product = tensor.startswith("v_")
        note = "" if not product else "an operand of the next GEMM" if tensor in stored else "a GEMM's product"
        return site_operand(layer, site, tensor, own, ("rows", channels), written=tensor in stored, note=note)

    operands = []
    if stage.fused:
        operands += [rows("dy", columns), site_operand(layer, site, "up", kind, (columns, layer.rank))]
    operands += [rows(name, stage.width(name)) for name in stage.rows if name != "dt" or not stage.fused]
    operands += tensor_operands(layer, stage.graph, stage.inputs, site)
    operands += [rows(name, channels) for name, channels in stored.items()]
    if stage.sums:
        shape, note = ("row tiles", width), "each tile's share of the gradients, summed by reduce_partials"
        operands.append(site_operand(layer, site, "partials", "fp32", shape, written=True, note=note))
    return operands


def _place(plan: Plan, source: Source, stage: Stage, arguments: list[Argument], channel_tiles: int) -> None:
    """Which channels, which site, which rows: programs next to each other hold tiles of channels next to each other."""
    layer, rows, program = plan.layer, plan.bottleneck_backward.rows, "tl.program_id(0)"
    if channel_tiles > 1:
        source.paragraph("which channels: no channel meets another here, so a program holds one tile of them")
        source.line(f"channel_tile = {program} % {channel_tiles}")
        program = f"{program} // {channel_tiles}"
    if layer.sites > 1:
        source.paragraph("which site; its tensors take the names without a number")
        if channel_tiles > 1:
            source.line(f"program = {program}")
            program = "program"
        source.line(f"row_tiles = tl.cdiv(rows, {rows})")
        source.line(f"row_tile = {program} % row_tiles")
        source.line(f"site = {program} // row_tiles")
        columns = stage.fused and len(set(layer.out_features)) > 1
        choose_site(source, layer, arguments, [f"columns = {count}" for count in layer.out_features] if columns else ())
    source.paragraph("the rows of this program; what is read past the end is masked in every sum")
    if layer.sites == 1:
        source.line(f"row_tile = {program}")
    begin_rows(source, rows, "row_tile")


def _store_partials(source: Source, sigma: Sigma, stage: Stage, width: int) -> None:
    if not stage.sums:
        return
    source.paragraph("this tile's share of the gradients that are summed over the rows")
    source.line(f"partials_row_ptr = partials_ptr + row_tile.to(tl.int64) * {width}")
    for output, partial in stage.sums:
        value = sigma.low.value(sigma.low.outputs[output])
        for place in sigma.low.places(value):
            code = solid(value.tiles[place], place)
            if partial.name == "d_down_bias":  # of dh itself, not yet summed
                code = Code.call(f"tl.sum({sigma.low.masked(value, place, [0])}, axis=0)")
            code = sigma.named(code, partial.name, value, place)
            _store(source, sigma, partial, place[-len(partial.shape) :] if partial.shape else (), code)


def _store(source: Source, sigma: Sigma, partial: Partial, place: Place, code: Code) -> None:
    base = f"partials_row_ptr + {partial.offset}" if partial.offset else "partials_row_ptr"
    address, mask = sigma.address(base, place, partial.shape)
    source.line(f"tl.store({address}, {code}{mask.argument(source.line)})")

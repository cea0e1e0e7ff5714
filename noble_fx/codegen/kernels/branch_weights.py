"""branch_weight_backward: dU = dyᵀ t, db = Σ dy and dD = dhᵀ x in one launch, dy read once for dU and db.

The results are narrow, [N, r] and [r, K], and the sums long: few tiles would leave most of a GPU idle. So the rows are
dealt to `SPLITS` programs a tile, each of which writes its partial sums, and `reduce_branch_weights` adds them in a
fixed order: no atomics, the same bits every time. The other plan is one vendor GEMM for each of dU and dD.
"""

from __future__ import annotations

from collections.abc import Sequence

from noble_fx.codegen.code import Code, Mask
from noble_fx.codegen.header import backend_line, header
from noble_fx.codegen.kernel import Argument, Kernel, Operand, moved_bytes, shared_operand, site_operand
from noble_fx.codegen.kernels.product import dot
from noble_fx.codegen.kernels.reduce import Gradient, reduce_partials
from noble_fx.codegen.plan import DTYPES, Layer, Plan, widest_tile
from noble_fx.codegen.sigma.axes import Axes, Segment
from noble_fx.codegen.sigma.tiles import bound, channel_numbers, tile_name
from noble_fx.codegen.source import Source

SPLITS = 8


def branch_weights_width(layer: Layer, site: int) -> int:
    """Numbers in one row of a site's `weight_partials` [SPLITS, this]."""
    return sum(gradient.size for gradient in _gradients(layer, site))


def _gradients(layer: Layer, site: int) -> list[Gradient]:
    columns, kind = layer.out_features[site], DTYPES[layer.dtype]
    gradients = [
        Gradient("d_up", (columns, layer.rank), kind),
        Gradient("d_down", (layer.rank, layer.in_features), kind),
    ]
    return [*gradients, Gradient("d_bias", (columns,), kind)] if layer.bias else gradients


def reduce_branch_weights(plan: Plan) -> Kernel:
    """The partial sums of `branch_weight_backward`, added up."""
    gradients = [_gradients(plan.layer, site) for site in range(plan.layer.sites)]
    note = "a row is the share of one part of the rows"
    return reduce_partials("reduce_branch_weights", plan.layer, "weight_partials", gradients, note, SPLITS)


def branch_weight_backward(plan: Plan) -> Kernel:
    """Partial sums of dU, dD and db for every site, over `SPLITS` parts of the rows."""
    layer, tile, source = plan.layer, plan.branch_weight_backward, Source()
    operands = _operands(layer)
    arguments = [*(operand.pointer for operand in operands), Argument("rows", "i32")]
    arguments += [operand.stride(0) for operand in operands if operand.tensor in ("x", "dy")]
    layout = [
        f"one program: {tile.columns} columns of dy or x, one {SPLITS}th of the rows in steps of {tile.depth}",
        backend_line(plan, tile.warps, tile.stages),
    ]
    title = f"branch_weight_backward: dU = dyᵀ t{',  db = Σ dy' if layer.bias else ''},  dD = dhᵀ x"
    source.head(header(title, [], operands, layout))
    segments = _segments(layer)
    with source.function("branch_weight_backward", arguments):
        _place(source, tile.depth)
        for segment in segments:
            channel_numbers(source, segment, layer.rank)
        jobs = [(site, kind, _tiles(plan, site, kind)) for site in range(layer.sites) for kind in ("up", "down")]
        blocks, begin = sum(count for _, _, count in jobs), 0
        for site, kind, count in jobs:
            source.paragraph(_formula(layer, site, kind))
            with source.block(f"if {Mask.between('place', begin, begin + count, blocks)}"):
                place = f"(place - {begin})" if begin else "place"
                source.line(f"column = {place} * {tile.columns} + tl.arange(0, {tile.columns})")
                _tile(plan, source, site, kind, segments)
            begin += count
    per_row, once = moved_bytes(operands)
    return Kernel(
        name="branch_weight_backward",
        source=str(source),
        arguments=tuple(arguments),
        row_tile=0,
        blocks=blocks * SPLITS,
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * layer.rank * (sum(layer.out_features) + layer.sites * layer.in_features),
        bytes_per_row=per_row,
        bytes_once=once,
    )


def _operands(layer: Layer) -> list[Operand]:
    kind, note = DTYPES[layer.dtype], f"dU, dD{', db' if layer.bias else ''}"
    operands = [shared_operand("x", kind, ("rows", layer.in_features))]
    for site, columns in enumerate(layer.out_features):
        shape = SPLITS, branch_weights_width(layer, site)
        operands += [
            site_operand(layer, site, "dy", kind, ("rows", columns)),
            site_operand(layer, site, "t", kind, ("rows", layer.rank)),
            site_operand(layer, site, "dh", kind, ("rows", layer.rank)),
            site_operand(layer, site, "weight_partials", "fp32", shape, written=True, note=note),
        ]
    return operands


def _place(source: Source, depth: int) -> None:
    source.paragraph(f"which part of the rows, which columns; a part is a whole number of steps of {depth}")
    source.line(f"part = tl.program_id(0) % {SPLITS}")
    source.line(f"place = tl.program_id(0) // {SPLITS}")
    source.line(f"part_rows = tl.cdiv(tl.cdiv(rows, {SPLITS}), {depth}) * {depth}")
    source.line("first = part * part_rows")
    source.line("last = tl.minimum(first + part_rows, rows)")
    source.line(f"step = tl.arange(0, {depth})")


def _tiles(plan: Plan, site: int, kind: str) -> int:
    """Tiles of columns: of dy for dU, of x for dD."""
    columns = plan.layer.out_features[site] if kind == "up" else plan.layer.in_features
    return -(-columns // plan.branch_weight_backward.columns)


def _segments(layer: Layer) -> list[Segment]:
    axes = Axes(widest_tile(layer.rank))
    rank = axes.new(layer.rank)
    axes.settle()
    return axes.segments(rank)


def _formula(layer: Layer, site: int, kind: str) -> str:
    name = {n: layer.name(n, site) for n in ("dy", "t", "dh")}
    if kind == "down":
        return f"dD = {name['dh']}ᵀ x"
    return f"dU = {name['dy']}ᵀ {name['t']}" + (f",  db = Σ {name['dy']}" if layer.bias else "")


def _tile(plan: Plan, source: Source, site: int, kind: str, segments: Sequence[Segment]) -> None:
    """One tile of columns: its product with t or dh over a part of the rows, written to `weight_partials`."""
    layer, tile = plan.layer, plan.branch_weight_backward
    up = kind == "up"
    columns = layer.out_features[site] if up else layer.in_features
    ragged, summed = columns % tile.columns != 0, up and layer.bias
    source.line(f"column_read = {f'tl.minimum(column, {columns - 1})' if ragged else 'column'}[None, :]")
    for segment in segments:
        acc = tile_name("acc", segment, segments)
        source.line(f"{acc} = tl.zeros([{tile.columns}, {segment.tile}], tl.float32)")
    if summed:
        source.line(f"bias = tl.zeros([{tile.columns}], tl.float32)")
    _sum_over_rows(plan, source, site, kind, segments)
    source.line(f"out_ptr = {layer.name('weight_partials', site)}_ptr + part * {branch_weights_width(layer, site)}")
    inside = Mask.where(f"column[:, None] < {columns}") if ragged else Mask()
    for segment in segments:
        acc, index = tile_name("acc", segment, segments), channel_numbers(source, segment, layer.rank)
        place = f"column[:, None] * {layer.rank} + {index}[None, :]"
        if not up:
            place = f"{layer.out_features[site] * layer.rank} + {index}[None, :] * {columns} + column[:, None]"
        masked = (inside & bound(source, segment, layer.rank, "[None, :]")).argument(source.line)
        source.line(f"tl.store(out_ptr + {place}, {acc}{masked})")
    if summed:
        offset = branch_weights_width(layer, site) - columns
        masked = (Mask.where(f"column < {columns}") if ragged else Mask()).argument(source.line)
        source.line(f"tl.store(out_ptr + {offset} + column, bias{masked})")


def _sum_over_rows(plan: Plan, source: Source, site: int, kind: str, segments: Sequence[Segment]) -> None:
    """acc += wideᵀ · narrow over this program's part of the rows: dyᵀ t, or xᵀ dh."""
    layer, tile = plan.layer, plan.branch_weight_backward
    up = kind == "up"
    wide, narrow = (layer.name("dy", site), layer.name("t", site)) if up else ("x", layer.name("dh", site))
    with source.block(f"for start in range(first, last, {tile.depth})"):
        source.line("row = (start + step)[:, None]")
        source.line("live = row < last")
        source.line(f"tile_ptr = {wide}_ptr + row.to(tl.int64) * {wide}_stride_0 + column_read")
        source.line(f"{wide}_tile = tl.load(tile_ptr, mask=live, other=0.0)")
        for segment in segments:
            index = f"{channel_numbers(source, segment, layer.rank)}[None, :]"
            mask = Mask((Code.name("live"),)) & bound(source, segment, layer.rank, "[None, :]")
            masked = mask.argument(source.line, "0.0")
            address = f"{narrow}_ptr + row.to(tl.int64) * {layer.rank} + {index}"
            source.line(f"{narrow}_tile = tl.load({address}{masked})")
            acc = tile_name("acc", segment, segments)
            source.line(f"{acc} = {dot(plan, f'tl.trans({wide}_tile)', f'{narrow}_tile', acc)}")
        if up and layer.bias:
            source.line(f"bias += tl.sum({wide}_tile.to(tl.float32), axis=0)")

"""branch_weight_backward: dU = dyᵀ t, db = Σ dy and dD = dhᵀ x in one launch, dy read once for dU and db.

The results are narrow, [N, r] and [r, K], and the sums long: few tiles would leave most of a GPU idle. So the rows are
dealt to `SPLITS` programs a tile, each of which writes its partial sums, and `reduce_branch_weights` adds them in a
fixed order: no atomics, the same bits every time. The other plan is one vendor GEMM for each of dU and dD.
"""

from __future__ import annotations

from collections.abc import Sequence

from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.kernels.product import dot
from noble_fx.codegen.kernels.reduce import reduce_partials
from noble_fx.codegen.plan import DTYPES, GENERATOR, Layer, Plan, widest_tile
from noble_fx.codegen.sigma.axes import Axes, Segment
from noble_fx.codegen.sigma.in_kernel import tile_name
from noble_fx.codegen.sigma.lower import channels
from noble_fx.codegen.source import Source

SPLITS = 8


def branch_weights_width(layer: Layer, site: int) -> int:
    """Numbers in one row of a site's `weight_partials` [SPLITS, this]."""
    return sum(size for _, size in _parts(layer, site))


def _parts(layer: Layer, site: int) -> list[tuple[str, int]]:
    columns = layer.out_features[site]
    parts = [("d_up", columns * layer.rank), ("d_down", layer.rank * layer.in_features)]
    return [*parts, ("d_bias", columns)] if layer.bias else parts


def reduce_branch_weights(plan: Plan) -> Kernel:
    """The partial sums of `branch_weight_backward`, added up."""
    layer, kind = plan.layer, DTYPES[plan.layer.dtype]
    parts = [[(name, size, kind) for name, size in _parts(layer, site)] for site in range(layer.sites)]
    note = "a row is the share of one part of the rows"
    return reduce_partials("reduce_branch_weights", layer, "weight_partials", parts, note, rows=str(SPLITS))


def branch_weight_backward(plan: Plan) -> Kernel:
    """Partial sums of dU, dD and db for every site, over `SPLITS` parts of the rows."""
    layer, tile, source = plan.layer, plan.branch_weight_backward, Source()
    dtype = DTYPES[layer.dtype]
    names = ["dy", "t", "dh", "weight_partials"]
    arguments = [Argument("x_ptr", f"*{dtype}")]
    for site in range(layer.sites):
        kinds = [dtype, dtype, dtype, "fp32"]
        arguments += [Argument(f"{layer.name(n, site)}_ptr", f"*{kind}") for n, kind in zip(names, kinds, strict=True)]
    arguments += [Argument("rows", "i32"), Argument("x_stride_0", "i32")]
    arguments += [Argument(f"{layer.name('dy', site)}_stride_0", "i32") for site in range(layer.sites)]
    source.header(
        f"branch_weight_backward: dU = dyᵀ t{',  db = Σ dy' if layer.bias else ''},  dD = dhᵀ x",
        [
            f"dy [rows, {' | '.join(map(str, layer.out_features))}]   x [rows, {layer.in_features}]   "
            f"t, dh [rows, {layer.rank}] {dtype}",
            f"weight_partials [{SPLITS}, {branch_weights_width(layer, 0)}] float32: dU, dD"
            + (", db" if layer.bias else ""),
            f"one program: {tile.columns} columns of dy or x, one {SPLITS}th of the rows in steps of {tile.depth}",
            f"{plan.backend} · {tile.warps} warps · {tile.stages} stages · generator {GENERATOR}",
        ],
    )
    tiles = [-(-n // tile.columns) for n in layer.out_features], -(-layer.in_features // tile.columns)
    with source.function("branch_weight_backward", arguments):
        source.paragraph(f"which part of the rows, which columns; a part is a whole number of steps of {tile.depth}")
        source.line(f"part = tl.program_id(0) % {SPLITS}")
        source.line(f"place = tl.program_id(0) // {SPLITS}")
        source.line(f"part_rows = tl.cdiv(tl.cdiv(rows, {SPLITS}), {tile.depth}) * {tile.depth}")
        source.line("first = part * part_rows")
        source.line("last = tl.minimum(first + part_rows, rows)")
        source.line(f"step = tl.arange(0, {tile.depth})")
        segments = _segments(layer)
        for segment in segments:
            channels(source, segment, layer.rank)
        begin = 0
        for site in range(layer.sites):
            for kind, count in (("up", tiles[0][site]), ("down", tiles[1])):
                source.paragraph(_law(layer, site, kind))
                condition = f"(place >= {begin}) & (place < {begin + count})" if begin else f"place < {count}"
                with source.block(f"if {condition}"):
                    mine = f"(place - {begin})" if begin else "place"
                    source.line(f"column = {mine} * {tile.columns} + tl.arange(0, {tile.columns})")
                    _tile(plan, source, site, kind, segments)
                begin += count
    size = layer.dtype.itemsize
    wide = sum(layer.out_features) + layer.sites * layer.in_features
    return Kernel(
        name="branch_weight_backward",
        source=str(source),
        arguments=tuple(arguments),
        row_tile=0,
        blocks=begin * SPLITS,
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * layer.rank * wide,
        bytes_per_row=size * (sum(layer.out_features) + layer.in_features + 2 * layer.sites * layer.rank),
        bytes_once=4 * SPLITS * sum(branch_weights_width(layer, site) for site in range(layer.sites)),
    )


def _segments(layer: Layer) -> list[Segment]:
    axes = Axes(widest_tile(layer.rank))
    rank = axes.new(layer.rank)
    axes.settle()
    return axes.segments(rank)


def _law(layer: Layer, site: int, kind: str) -> str:
    name = {n: layer.name(n, site) for n in ("dy", "t", "dh")}
    if kind == "down":
        return f"dD = {name['dh']}ᵀ x"
    return f"dU = {name['dy']}ᵀ {name['t']}" + (f",  db = Σ {name['dy']}" if layer.bias else "")


def _tile(plan: Plan, source: Source, site: int, kind: str, segments: Sequence[Segment]) -> None:
    """One tile of columns: its product with t or dh over a part of the rows, written to `weight_partials`."""
    layer, tile = plan.layer, plan.branch_weight_backward
    up = kind == "up"
    columns = layer.out_features[site] if up else layer.in_features
    wide, narrow = (layer.name("dy", site), layer.name("t", site)) if up else ("x", layer.name("dh", site))
    summed = up and layer.bias
    ragged = columns % tile.columns != 0
    source.line(f"column_read = {f'tl.minimum(column, {columns - 1})' if ragged else 'column'}[None, :]")
    for segment in segments:
        acc = tile_name("acc", segment, segments)
        source.line(f"{acc} = tl.zeros([{tile.columns}, {segment.tile}], tl.float32)")
    if summed:
        source.line(f"bias = tl.zeros([{tile.columns}], tl.float32)")
    with source.block(f"for start in range(first, last, {tile.depth})"):
        source.line("row = (start + step)[:, None]")
        source.line("live = row < last")
        source.line(f"tile_ptr = {wide}_ptr + row.to(tl.int64) * {wide}_stride_0 + column_read")
        source.line(f"{wide}_tile = tl.load(tile_ptr, mask=live, other=0.0)")
        for segment in segments:
            index = f"{channels(source, segment, layer.rank)}[None, :]"
            bound = segment.start + segment.size
            source.line(f"inside = {f'live & ({index} < {bound})' if segment.padded else 'live'}")
            address = f"{narrow}_ptr + row.to(tl.int64) * {layer.rank} + {index}"
            source.line(f"{narrow}_tile = tl.load({address}, mask=inside, other=0.0)")
            acc = tile_name("acc", segment, segments)
            source.line(f"{acc} = {dot(plan, f'tl.trans({wide}_tile)', f'{narrow}_tile', acc)}")
        if summed:
            source.line(f"bias += tl.sum({wide}_tile.to(tl.float32), axis=0)")
    source.line(f"out_ptr = {layer.name('weight_partials', site)}_ptr + part * {branch_weights_width(layer, site)}")
    fits = f"column < {columns}" if ragged else ""
    for segment in segments:
        acc, index = tile_name("acc", segment, segments), channels(source, segment, layer.rank)
        if up:
            place = f"column[:, None] * {layer.rank} + {index}[None, :]"
        else:
            offset = layer.out_features[site] * layer.rank
            place = f"{offset} + {index}[None, :] * {columns} + column[:, None]"
        masks = [f"(column[:, None] < {columns})"] if ragged else []
        masks += [f"({index}[None, :] < {segment.start + segment.size})"] if segment.padded else []
        if masks:
            source.line(f"inside = {' & '.join(masks) if len(masks) > 1 else masks[0][1:-1]}")
        source.line(f"tl.store(out_ptr + {place}, {acc}{', mask=inside' if masks else ''})")
    if summed:
        offset = branch_weights_width(layer, site) - columns
        source.line(f"tl.store(out_ptr + {offset} + column, bias{f', mask={fits}' if fits else ''})")

"""What the kernels of the bottleneck share: a program's rows, narrow products over one read of x or dy, stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from noble_fx.codegen.code import LIVE, Code, Mask
from noble_fx.codegen.kernel import Argument
from noble_fx.codegen.kernels.product import dot
from noble_fx.codegen.plan import Layer, Plan, Tile
from noble_fx.codegen.sigma.axes import Segment
from noble_fx.codegen.sigma.in_kernel import Sigma
from noble_fx.codegen.sigma.tiles import channel_numbers, solid, tile_name
from noble_fx.codegen.source import Source

WIDE_COLUMNS = 64  # of the tile that `wide_product` has in registers


def begin_rows(source: Source, rows: int, program: str) -> None:
    """The row numbers of this program; reads past the end are clamped, and `live` masks what they compute."""
    source.line(f"row = {program}.to(tl.int64) * {rows} + tl.arange(0, {rows})")
    source.line("live = row < rows")
    source.line("row_read = tl.minimum(row, rows - 1)[:, None]")


def choose_site(source: Source, layer: Layer, arguments: Sequence[Argument], also: Sequence[str] = ()) -> None:
    """The tensors of the site that this program belongs to take the names without a number; `also`: a line for each."""
    for site in range(layer.sites):
        head = f"if site == {site}" if site == 0 else "else" if site == layer.sites - 1 else f"elif site == {site}"
        with source.block(head):
            for argument in arguments:
                if argument.tensor and argument.site == site and argument.plain != argument.name:
                    source.line(f"{argument.plain} = {argument.name}")
            if also:
                source.line(also[site])


def load_rows(sigma: Sigma, name: str) -> None:
    """Read an input [rows, width] of float32 or, for dt, of the layer's dtype."""
    node = sigma.inputs[name]
    segments = sigma.segments(node)
    width = sigma.width(node)
    cast = ".to(tl.float32)" if name == "dt" and not sigma.plan.exact else ""
    for segment in segments:
        index = clamped(sigma.low.index(segment), segment)
        address = f"{name}_ptr + row_read * {width} + {index}[None, :]"
        sigma.source.line(f"{tile_name(name, segment, segments)} = tl.load({address}){cast}")


def store_result(sigma: Sigma, output: int, tensor: str) -> None:
    """Write a result [rows, width] to `tensor`."""
    node = sigma.low.outputs[output]
    value = sigma.low.value(node)
    for place in sigma.low.places(value):
        code = sigma.named(solid(value.tiles[place], place), tensor, value, place)
        store_rows(sigma, tensor, place[1], sigma.width(node), code)


def store_rows(sigma: Sigma, tensor: str, segment: Segment, width: int, code: Code) -> None:
    """Write one tile of a tensor [rows, width], contiguous."""
    mask = LIVE & sigma.low.bound(segment, "[None, :]")
    address = f"{tensor}_ptr + row[:, None] * {width} + {sigma.low.index(segment)}[None, :]"
    sigma.source.line(f"tl.store({address}, {code}, mask={mask})")


@dataclass(frozen=True)
class Wide:
    """A wide result of a narrow value: value [rows, r] · right (+ bias) -> result [rows, columns].

    `transposed`: right is stored [columns, r], as U is; else [r, columns], as D is. `columns` may be a variable.
    """

    right: str
    result: str
    columns: int | str
    transposed: bool
    bias: str = ""


def wide_product(sigma: Sigma, output: int, name: str, wide: Wide) -> None:
    """A result of σ's graph times a matrix, one tile of columns at a time: no more than that is in registers."""
    plan, source, rank = sigma.plan, sigma.source, sigma.plan.layer.rank
    value, parts = sigma.low.value(sigma.low.outputs[output]), []
    for place in sigma.low.places(value):
        part = "_".join([name, "part", *sigma.low.cut(value, place)])
        cast = "" if plan.exact else f".to({wide.right}_ptr.dtype.element_ty)"
        source.line(f"{part} = {sigma.low.masked(value, place, [1]).grouped}{cast}")
        parts.append((part, sigma.low.index(place[1]), sigma.low.bound(place[1], "[:, None]")))
    ragged = isinstance(wide.columns, str) or wide.columns % WIDE_COLUMNS != 0
    with source.block(f"for start in range(0, {wide.columns}, {WIDE_COLUMNS})"):
        source.line(f"column = start + tl.arange(0, {WIDE_COLUMNS})")
        source.line(f"column_read = {f'tl.minimum(column, {wide.columns} - 1)' if ragged else 'column'}")
        for part, index, bound in parts:
            address = f"column_read[None, :] * {rank} + {index}[:, None]"
            if not wide.transposed:
                address = f"{index}[:, None] * {wide.columns} + column_read[None, :]"
            masked = bound.argument(source.line, "0.0")
            source.line(f"{wide.right}_tile = tl.load({wide.right}_ptr + {address}{masked})")
            acc = "" if part == parts[0][0] else "acc"
            source.line(f"acc = {dot(plan, part, f'{wide.right}_tile', acc)}")
        if wide.bias:
            source.line(f"acc += tl.load({wide.bias}_ptr + column_read).to(tl.float32)[None, :]")
        mask = LIVE & (Mask.where(f"column[None, :] < {wide.columns}") if ragged else Mask())
        address = f"{wide.result}_ptr + row[:, None] * {wide.columns} + column[None, :]"
        source.line(f"tl.store({address}, acc.to({wide.result}_ptr.dtype.element_ty), mask={mask})")


def clamped(index: str, segment: Segment) -> str:
    """Channel numbers that are read, whether the lane holds a channel or not."""
    return f"tl.minimum({index}, {segment.start + segment.size - 1})" if segment.padded else index


@dataclass(frozen=True)
class Narrow:
    """One of the narrow results of a bottleneck product: variable, right operand, and its tiles of channels."""

    name: str
    right: str
    segments: tuple[Segment, ...]


def narrow_products(
    source: Source, plan: Plan, tile: Tile, left: str, depth: int | str, outs: Sequence[Narrow], transposed: bool
) -> None:
    """left [rows, depth] times narrow right operands, all in one loop over the depth; left is read once.

    `transposed`: right is stored [r, depth], as D is; else [depth, r], as U is. `depth` may be a variable.
    """
    rank = plan.layer.rank
    source.line(f"step = tl.arange(0, {tile.depth})")
    source.line(f"{left}_tile_ptr = {left}_ptr + row_read * {left}_stride_0 + step[None, :]")
    accumulators = []
    for out in outs:
        for segment in out.segments:
            name, right = tile_name(out.name, segment, out.segments), tile_name(out.right, segment, out.segments)
            index = f"{clamped(channel_numbers(source, segment, rank), segment)}[None, :]"
            place = f"{index} * {depth} + step[:, None]" if transposed else f"{index} + step[:, None] * {rank}"
            source.line(f"{right}_tile_ptr = {out.right}_ptr + {place}")
            source.line(f"{name} = tl.zeros([{tile.rows}, {segment.tile}], tl.float32)")
            accumulators.append((name, right))

    def inside(index: str) -> str:
        ragged = isinstance(depth, str) or depth % tile.depth
        return (Mask.where(f"step{index} < {depth} - start") if ragged else Mask()).argument(source.line, "0.0")

    with source.block(f"for start in range(0, {depth}, {tile.depth})"):
        source.line(f"{left}_tile = tl.load({left}_tile_ptr{inside('[None, :]')})")
        source.line(f"{left}_tile_ptr += {tile.depth}")
        for name, right in accumulators:
            source.line(f"{right}_tile = tl.load({right}_tile_ptr{inside('[:, None]')})")
            source.line(f"{name} = {dot(plan, f'{left}_tile', f'{right}_tile', name)}")
            source.line(f"{right}_tile_ptr += {tile.depth if transposed else tile.depth * rank}")

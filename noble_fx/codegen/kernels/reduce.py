"""Partial sums added up: `partials` [programs, width] → one tensor for each gradient, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from noble_fx.codegen.code import Mask
from noble_fx.codegen.header import header
from noble_fx.codegen.kernel import Argument, Kernel, Operand, moved_bytes, site_operand
from noble_fx.codegen.plan import GENERATOR, Layer
from noble_fx.codegen.source import Source

_COLUMNS = 128
_ROWS = 32


@dataclass(frozen=True)
class Gradient:
    """One gradient in a row of partial sums: its tensor, shape and type; gradients lie one after the other."""

    tensor: str
    shape: tuple[int, ...]
    type: str

    @property
    def size(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


@dataclass(frozen=True)
class _Sums:
    """The partial sums of one site, and what becomes of them."""

    partials: Operand
    gradients: tuple[tuple[Operand, int], ...]  # a tensor, and the numbers in it

    @property
    def width(self) -> int:
        return sum(size for _, size in self.gradients)


def reduce_partials(
    name: str, layer: Layer, partials: str, gradients: Sequence[Sequence[Gradient]], note: str, rows: int | str
) -> Kernel:
    """One kernel that sums the rows of `partials`, for every site, into the site's gradients.

    A program takes 128 columns of one site and walks down the rows; what it finds goes to the gradients it covers.
    `rows` is how many there are: a number, or the name of an argument.
    """
    source = Source()
    sums = [_sums(layer, site, partials, own, note, rows) for site, own in enumerate(gradients)]
    operands = [operand for site in sums for operand in (site.partials, *(written for written, _ in site.gradients))]
    arguments = [operand.pointer for operand in operands]
    if isinstance(rows, str):
        arguments.append(Argument(rows, "i32"))
    layout = [f"one program: {_COLUMNS} columns, always in the same order · generator {GENERATOR}"]
    source.head(header(f"{name}: the sum of {partials} over its rows", [], operands, layout))
    tiles = [-(-site.width // _COLUMNS) for site in sums]
    with source.function(name, arguments):
        if layer.sites > 1:
            source.line("program = tl.program_id(0)")
        first = 0
        for site, own in enumerate(sums):
            if layer.sites == 1:
                source.line(f"column = tl.program_id(0) * {_COLUMNS} + tl.arange(0, {_COLUMNS})")
                _one_site(source, own, rows)
                continue
            source.paragraph(f"site {site}")
            with source.block(f"if {Mask.between('program', first, first + tiles[site], sum(tiles))}"):
                program = f"(program - {first})" if first else "program"
                source.line(f"column = {program} * {_COLUMNS} + tl.arange(0, {_COLUMNS})")
                _one_site(source, own, rows)
            first += tiles[site]
    return Kernel(
        name=name,
        source=str(source),
        arguments=tuple(arguments),
        row_tile=0,
        blocks=sum(tiles),
        warps=4,
        stages=1,
        bytes_once=moved_bytes(operands)[1],
    )


def _sums(layer: Layer, site: int, partials: str, gradients: Sequence[Gradient], note: str, rows: int | str) -> _Sums:
    width = sum(gradient.size for gradient in gradients)
    read = site_operand(layer, site, partials, "fp32", (rows, width), note=note)
    written = [
        site_operand(layer, site, gradient.tensor, gradient.type, gradient.shape, written=True)
        for gradient in gradients
    ]
    return _Sums(read, tuple(zip(written, (gradient.size for gradient in gradients), strict=True)))


def _one_site(source: Source, sums: _Sums, rows: int | str) -> None:
    """The sum of one tile of columns, to the gradients that it covers."""
    step = min(_ROWS, rows) if isinstance(rows, int) else _ROWS
    source.line(f"step = tl.arange(0, {step})")
    source.line(f"total = tl.zeros([{_COLUMNS}], tl.float32)")
    columns = Mask() if sums.width % _COLUMNS == 0 else Mask.where(f"column[None, :] < {sums.width}")
    with source.block(f"for start in range(0, {rows}, {step})"):
        source.line("row = (start + step)[:, None]")
        source.line(f"tile_ptr = {sums.partials.name}_ptr + row.to(tl.int64) * {sums.width} + column[None, :]")
        masked = (Mask.where(f"row < {rows}") & columns).argument(source.line, "0.0")
        source.line(f"total += tl.sum(tl.load(tile_ptr{masked}), axis=0)")
    offset = 0
    for gradient, size in sums.gradients:
        pointer = f"{gradient.name}_ptr"
        source.paragraph(gradient.name)
        place = f"column - {offset}" if offset else "column"
        mask = Mask.between("column", offset, offset + size, -(-sums.width // _COLUMNS) * _COLUMNS)
        masked = mask.argument(source.line)
        source.line(f"tl.store({pointer} + {place}, total.to({pointer}.dtype.element_ty){masked})")
        offset += size

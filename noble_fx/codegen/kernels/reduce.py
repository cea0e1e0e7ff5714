"""Partial sums added up: `partials` [programs, width] → one tensor for each gradient, in a fixed order."""

from __future__ import annotations

from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.plan import GENERATOR, Layer
from noble_fx.codegen.source import Source

_COLUMNS = 128
_ROWS = 32

Parts = list[tuple[str, int, str]]  # (gradient, numbers in it, its type), in the order of a row


def reduce_partials(
    name: str, layer: Layer, given: str, parts: list[Parts], note: str, rows: str = "programs"
) -> Kernel:
    """One kernel that sums the rows of `given`, for every site, into the site's `parts`.

    A program takes 128 columns of one site and walks down the rows; what it finds goes to the gradients it covers.
    `rows` is how many there are: the argument "programs", or a number.
    """
    source = Source()
    widths = [sum(size for _, size, _ in mine) for mine in parts]
    tiles = [-(-width // _COLUMNS) for width in widths]
    arguments = []
    for site, mine in enumerate(parts):
        arguments.append(Argument(f"{layer.name(given, site)}_ptr", "*fp32"))
        arguments += [Argument(f"{layer.name(part, site)}_ptr", f"*{kind}") for part, _, kind in mine]
    if not rows.isdigit():
        arguments.append(Argument(rows, "i32"))
    source.header(
        f"{name}: the sum of {given} over its rows",
        [
            f"{given} [{rows}, {widths[0]}] float32, a row:",
            *(f"  {part} {size}" for part, size, _ in parts[0]),
            note,
            f"one program: {_COLUMNS} columns, always in the same order · generator {GENERATOR}",
        ],
    )
    with source.function(name, arguments):
        first = 0
        for site, mine in enumerate(parts):
            if layer.sites == 1:
                source.line(f"column = tl.program_id(0) * {_COLUMNS} + tl.arange(0, {_COLUMNS})")
                _one_site(source, layer, site, given, mine, rows)
                continue
            head = f"(tl.program_id(0) >= {first}) & (tl.program_id(0) < {first + tiles[site]})"
            with source.block(f"if {head}"):
                source.line(f"column = (tl.program_id(0) - {first}) * {_COLUMNS} + tl.arange(0, {_COLUMNS})")
                _one_site(source, layer, site, given, mine, rows)
            first += tiles[site]
    return Kernel(
        name=name,
        source=str(source),
        arguments=tuple(arguments),
        row_tile=0,
        blocks=sum(tiles),
        warps=4,
        stages=1,
        bytes_once=4 * sum(widths) * (int(rows) if rows.isdigit() else 1),
    )


def _one_site(source: Source, layer: Layer, site: int, given: str, parts: Parts, rows: str) -> None:
    width = sum(size for _, size, _ in parts)
    step = min(_ROWS, int(rows)) if rows.isdigit() else _ROWS
    source.line(f"step = tl.arange(0, {step})")
    source.line(f"total = tl.zeros([{_COLUMNS}], tl.float32)")
    with source.block(f"for start in range(0, {rows}, {step})"):
        source.line("row = (start + step)[:, None]")
        mask = f"row < {rows}" if width % _COLUMNS == 0 else f"(row < {rows}) & (column[None, :] < {width})"
        source.line(f"inside = {mask}")
        source.line(f"tile_ptr = {layer.name(given, site)}_ptr + row.to(tl.int64) * {width} + column[None, :]")
        source.line("total += tl.sum(tl.load(tile_ptr, mask=inside, other=0.0), axis=0)")
    offset = 0
    for part, size, _ in parts:
        pointer = f"{layer.name(part, site)}_ptr"
        source.paragraph(part)
        source.line(f"inside = (column >= {offset}) & (column < {offset + size})")
        place = f"column - {offset}" if offset else "column"
        source.line(f"tl.store({pointer} + {place}, total.to({pointer}.dtype.element_ty), mask=inside)")
        offset += size

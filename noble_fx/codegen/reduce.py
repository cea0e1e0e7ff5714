"""Partial sums added up: `partials` [programs, width] → one tensor for each gradient, in a fixed order."""

from __future__ import annotations

from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.plan import GENERATOR, Layer
from noble_fx.codegen.source import Source

_COLUMNS = 128
_ROWS = 32


def reduce_partials(name: str, layer: Layer, source_name: str, parts: list[tuple[str, int, str]], note: str) -> Kernel:
    """One kernel that sums the rows of `source_name`, for every site; `parts` are (gradient, numbers, type), in order.

    A program takes 128 columns of one site and walks down the rows; what it finds goes to the gradients it covers.
    """
    source, width = Source(), sum(size for _, size, _ in parts)
    arguments = []
    for site in range(layer.sites):
        arguments.append(Argument(f"{layer.name(source_name, site)}_ptr", "*fp32"))
        arguments += [Argument(f"{layer.name(part, site)}_ptr", f"*{kind}") for part, _, kind in parts]
    arguments.append(Argument("programs", "i32"))
    tiles = -(-width // _COLUMNS)
    source.header(
        f"{name}: the sum of {source_name} over its rows",
        [
            f"{source_name} [programs, {width}] float32  ->  {', '.join(part for part, _, _ in parts)}",
            note,
            f"one program: {_COLUMNS} columns, {_ROWS} rows a step, always in the same order · generator {GENERATOR}",
        ],
    )
    with source.function(name, arguments):
        source.line(f"column = tl.program_id(0) % {tiles} * {_COLUMNS} + tl.arange(0, {_COLUMNS})")
        if layer.sites == 1:
            _one_site(source, layer, 0, source_name, parts, width)
        for site in range(layer.sites if layer.sites > 1 else 0):
            with source.block(f"if tl.program_id(0) // {tiles} == {site}"):
                _one_site(source, layer, site, source_name, parts, width)
    return Kernel(
        name=name,
        source=str(source),
        arguments=tuple(arguments),
        row_tile=1,
        blocks=tiles * layer.sites,
        warps=4,
        stages=1,
        bytes_once=4 * width * layer.sites,
    )


def _one_site(
    source: Source, layer: Layer, site: int, given: str, parts: list[tuple[str, int, str]], width: int
) -> None:
    source.line(f"step = tl.arange(0, {_ROWS})")
    source.line(f"total = tl.zeros([{_COLUMNS}], tl.float32)")
    with source.block(f"for start in range(0, programs, {_ROWS})"):
        source.line("row = (start + step)[:, None]")
        mask = "row < programs" if width % _COLUMNS == 0 else f"(row < programs) & (column[None, :] < {width})"
        source.line(f"inside = {mask}")
        address = f"{layer.name(given, site)}_ptr + row.to(tl.int64) * {width} + column[None, :]"
        source.line(f"total += tl.sum(tl.load({address}, mask=inside, other=0.0), axis=0)")
    offset = 0
    for part, size, _ in parts:
        pointer = f"{layer.name(part, site)}_ptr"
        source.line(f"inside = (column >= {offset}) & (column < {offset + size})")
        place = f"column - {offset}" if offset else "column"
        source.line(f"tl.store({pointer} + {place}, total.to({pointer}.dtype.element_ty), mask=inside)")
        offset += size

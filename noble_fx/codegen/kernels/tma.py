"""The one-accumulation product by tensor descriptors, persistent: for GPUs whose copies are made by hardware (TMA).

The sum is that of `product.py`. A program makes the descriptors once and then walks over tiles of every result: its
numbers are its own plus multiples of the number of programs, so one program for each multiprocessor does, and so does
one for each tile. A descriptor reads zeros past an end and does not write there, so nothing is masked.

A descriptor needs an address and a stride between rows that are multiples of 16 bytes, and elements that lie next to
each other: a plan looks at the sizes of a layer, and who launches must look at x, dy and the weights.
"""

from __future__ import annotations

from noble_fx.codegen.header import backend_line, header
from noble_fx.codegen.kernel import Argument, Kernel, Operand, moved_bytes
from noble_fx.codegen.kernels.product import SWEEP, Out, Term, dot
from noble_fx.codegen.plan import Plan, Tile, power_of_two
from noble_fx.codegen.source import Source


def product_tma(plan: Plan, tile: Tile, name: str, title: str, outs: tuple[Out, ...]) -> Kernel:
    """One persistent kernel for all `outs`, one after the other."""
    source = Source()
    operands = list(dict.fromkeys(operand for out in outs for operand in out.operands))
    strides = dict.fromkeys(stride for out in outs for term in out.terms for stride in term.strides if stride.axis == 0)
    arguments = [*(operand.pointer for operand in operands), Argument("rows", "i32"), *strides]
    tiles = [-(-out.columns // tile.columns) for out in outs]
    layout = [
        f"one program: tile after tile of {tile.rows} × {tile.columns}, steps of {tile.depth}; float32 accumulator",
        backend_line(plan, tile.warps, tile.stages),
    ]
    source.head(header(f"{name}: {title}", [], operands, layout))
    with source.function(name, arguments):
        _descriptors(source, tile, outs)
        source.paragraph("the tiles lie one result after the other; a program takes every one that has its turn")
        source.line("program = tl.program_id(0)")
        source.line("programs = tl.num_programs(0)")
        source.line(f"row_tiles = tl.cdiv(rows, {tile.rows})")
        for at, (out, count) in enumerate(zip(outs, tiles, strict=True)):
            _walk(source, plan, tile, out, count, sum(tiles[:at]))
    per_row, once = moved_bytes(operands)
    return Kernel(
        name=name,
        source=str(source),
        arguments=tuple(arguments),
        row_tile=tile.rows,
        blocks=sum(tiles),
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * sum(term.depth * out.columns for out in outs for term in out.terms),
        bytes_per_row=per_row,
        bytes_once=once,
        persistent=True,
        descriptors=True,
    )


def _descriptors(source: Source, tile: Tile, outs: tuple[Out, ...]) -> None:
    source.paragraph("how each tensor lies in memory, and the piece that is copied at once")
    for out in outs:
        for term in out.terms:
            depth = _depth(tile, term)
            _descriptor(source, term.left, "rows", term.depth, term.strided, (tile.rows, depth))
            shape, block = (out.columns, term.depth), (tile.columns, depth)
            if not term.transposed:
                shape, block = shape[::-1], block[::-1]
            _descriptor(source, term.right, *shape, term.strided, block)
        _descriptor(source, out.result, "rows", out.columns, False, (tile.rows, tile.columns))


def _descriptor(
    source: Source, operand: Operand, rows: int | str, columns: int, strided: bool, block: tuple[int, int]
) -> None:
    stride = operand.stride(0).name if strided else columns
    arguments = f"shape=[{rows}, {columns}], strides=[{stride}, 1], block_shape=[{block[0]}, {block[1]}]"
    source.once(f"{operand.name} = tl.make_tensor_descriptor({operand.name}_ptr, {arguments})")


def _depth(tile: Tile, term: Term) -> int:
    return min(tile.depth, power_of_two(term.depth))


def _walk(source: Source, plan: Plan, tile: Tile, out: Out, columns: int, before: int) -> None:
    """The tiles of one result that are this program's; `before`: tiles in a row of those that lie before it."""
    name = out.result.name
    source.paragraph(f"{name} = {' + '.join(term.formula(lambda operand: operand.name) for term in out.terms)}")
    source.line(
        f"first = (program + programs - row_tiles * {before} % programs) % programs" if before else "first = program"
    )
    with source.block(f"for place in range(first, row_tiles * {columns}, programs)"):
        source.line(f"sweep = place // {SWEEP * columns}")
        source.line(f"sweep_rows = tl.minimum(row_tiles - sweep * {SWEEP}, {SWEEP})")
        source.line(f"row = (sweep * {SWEEP} + place % {SWEEP * columns} % sweep_rows) * {tile.rows}")
        source.line(f"column = place % {SWEEP * columns} // sweep_rows * {tile.columns}")
        source.line(f"acc = tl.zeros([{tile.rows}, {tile.columns}], tl.float32)")
        for term in out.terms:
            depth = _depth(tile, term)
            if term.depth <= depth:
                _step(source, plan, term, "0")
                continue
            with source.block(f"for start in range(0, {term.depth}, {depth})"):
                _step(source, plan, term, "start")
        if out.bias:
            source.line(f"bias_column = tl.minimum(column + tl.arange(0, {tile.columns}), {out.columns - 1})")
            source.line(f"acc += tl.load({out.bias.name}_ptr + bias_column).to(tl.float32)[None, :]")
        source.line(f"{name}.store([row, column], acc.to({name}_ptr.dtype.element_ty))")


def _step(source: Source, plan: Plan, term: Term, start: str) -> None:
    left, right = term.left.name, term.right.name
    source.line(f"{left}_tile = {left}.load([row, {start}])")
    source.line(f"{right}_tile = {right}.load([{f'column, {start}' if term.transposed else f'{start}, column'}])")
    tile = f"tl.trans({right}_tile)" if term.transposed else f"{right}_tile"
    source.line(f"acc = {dot(plan, f'{left}_tile', tile, 'acc')}")

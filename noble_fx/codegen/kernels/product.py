"""Products that share one accumulator: out = Σ leftᵢ · rightᵢ (+ bias), each tile of `out` written once.

The main product and the branch's small one are two terms of the same sum, so the branch adds steps to the main loop
and neither reads nor writes `out` again. Forward: y = x Wᵀ + b + t Uᵀ. Backward: dx = dy W + dh D. With several sites
that read one x, forward has one list of terms a site (each its own `out`), backward one long list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from noble_fx.codegen.code import Mask
from noble_fx.codegen.header import backend_line, header
from noble_fx.codegen.kernel import Argument, Kernel, Operand, moved_bytes
from noble_fx.codegen.plan import Plan, Tile, power_of_two
from noble_fx.codegen.source import Source

SWEEP = 8  # row tiles that neighbouring programs share before the next column tile: W stays in the cache

Show = Callable[[Operand], str]  # what the body calls a tensor


@dataclass(frozen=True)
class Term:
    """left [rows, depth] · right, where right is stored [columns, depth] (`transposed`) or [depth, columns].

    `strided`: the tensors' strides are arguments, else they are contiguous.
    """

    left: Operand
    right: Operand
    depth: int
    transposed: bool
    strided: bool

    def formula(self, show: Show) -> str:
        """The product as one writes it."""
        return f"{show(self.left)} · {show(self.right)}{'ᵀ' if self.transposed else ''}"

    @property
    def strides(self) -> list[Argument]:
        """The arguments that say where its tensors' elements lie."""
        return [self.left.stride(0), self.right.stride(0), self.right.stride(1)] if self.strided else []


@dataclass(frozen=True)
class Out:
    """One result [rows, columns], the terms of its sum, and the bias that it starts from."""

    result: Operand
    columns: int
    terms: tuple[Term, ...]
    bias: Operand | None = None

    @property
    def operands(self) -> list[Operand]:
        """Its tensors, in the order of the arguments."""
        tensors = [operand for term in self.terms for operand in (term.left, term.right)]
        return [*tensors, *([self.bias] if self.bias else []), self.result]

    @property
    def arguments(self) -> list[Argument]:
        """What it needs of the arguments."""
        strides = [stride for term in self.terms for stride in term.strides]
        return [*(operand.pointer for operand in self.operands), *strides]


def product(plan: Plan, tile: Tile, name: str, title: str, outs: tuple[Out, ...]) -> Kernel:
    """One kernel for all `outs`; programs run over the column tiles of one after the other."""
    source = Source()
    operands = list(dict.fromkeys(operand for out in outs for operand in out.operands))
    strides = dict.fromkeys(stride for out in outs for term in out.terms for stride in term.strides)
    arguments = [*(operand.pointer for operand in operands), Argument("rows", "i32"), *strides]
    tiles = [-(-out.columns // tile.columns) for out in outs]
    layout = [
        f"one program: {tile.rows} rows × {tile.columns} columns, steps of {tile.depth}; float32 accumulator",
        backend_line(plan, tile.warps, tile.stages),
    ]
    source.head(header(f"{name}: {title}", [], operands, layout))
    with source.function(name, arguments):
        _place(source, tile, sum(tiles))
        _choose_site(source, outs, tiles)
        _body(source, plan, tile, outs)
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
    )


def _place(source: Source, tile: Tile, columns: int) -> None:
    source.paragraph(f"which tile: {SWEEP} tiles of rows, then the next tile of columns")
    source.line("program = tl.program_id(0)")
    source.line(f"row_tiles = tl.cdiv(rows, {tile.rows})")
    source.line(f"sweep = program // {SWEEP * columns}")
    source.line(f"sweep_rows = tl.minimum(row_tiles - sweep * {SWEEP}, {SWEEP})")
    source.line(f"place = program % {SWEEP * columns}")
    source.line(f"row_tile = sweep * {SWEEP} + place % sweep_rows")
    source.line("column_tile = place // sweep_rows")


def _choose_site(source: Source, outs: tuple[Out, ...], tiles: list[int]) -> None:
    """Several outs: the tensors of the one that this program belongs to take the names without a number."""
    if len(outs) == 1:
        return
    source.paragraph("whose tile: the sites lie one after the other")
    first = 0
    for site, (out, count) in enumerate(zip(outs, tiles, strict=True)):
        head = "if" if site == 0 else "elif" if site < len(outs) - 1 else "else"
        condition = "" if head == "else" else f" column_tile < {first + count}"
        with source.block(f"{head}{condition}"):
            for argument in out.arguments:
                if argument.plain != argument.name:
                    source.line(f"{argument.plain} = {argument.name}")
            source.line(f"columns = {out.columns}")
            if site:
                source.line(f"column_tile -= {first}")
        first += count


def _body(source: Source, plan: Plan, tile: Tile, outs: tuple[Out, ...]) -> None:
    out, several = outs[0], len(outs) > 1

    def show(operand: Operand) -> str:
        return operand.tensor if several else operand.name

    columns = "columns" if several else str(out.columns)
    ragged = any(each.columns % tile.columns for each in outs)
    source.paragraph("indices past an end are clamped: what they compute is not stored")
    source.line(f"row = row_tile.to(tl.int64) * {tile.rows} + tl.arange(0, {tile.rows})")
    source.line(f"column = column_tile * {tile.columns} + tl.arange(0, {tile.columns})")
    source.line("row_read = tl.minimum(row, rows - 1)[:, None]")
    clamped = f"tl.minimum(column, {columns} - 1)" if ragged else "column"
    source.line(f"column_read = {clamped}[None, :]")
    source.line(f"acc = tl.zeros([{tile.rows}, {tile.columns}], tl.float32)")
    for term in out.terms:
        _term(source, plan, tile, term, show, columns)
    if out.bias:
        source.paragraph("the bias, once a column")
        source.line(f"acc += tl.load({show(out.bias)}_ptr + column_read).to(tl.float32)")
    name = show(out.result)
    source.paragraph(f"{name} is written here and nowhere else")
    mask = Mask.where("row[:, None] < rows")
    mask &= Mask.where(f"column[None, :] < {columns}") if ragged else Mask()
    source.line(f"{name}_tile_ptr = {name}_ptr + row[:, None] * {columns} + column[None, :]")
    source.line(f"tl.store({name}_tile_ptr, acc.to({name}_ptr.dtype.element_ty), mask={mask})")


def _term(source: Source, plan: Plan, tile: Tile, term: Term, show: Show, columns: str) -> None:
    """acc += left · right, in steps along the depth that the two share."""
    left, right = show(term.left), show(term.right)
    depth = min(tile.depth, power_of_two(term.depth))
    ragged = bool(term.depth % depth)
    along, across = (f"{right}_stride_1", f"{right}_stride_0") if term.strided else ("1", str(term.depth))
    if not term.transposed:
        along, across = (across, along) if term.strided else (columns, "1")
    rows = f"{left}_stride_0" if term.strided else str(term.depth)
    source.paragraph(term.formula(show))
    source.line(f"step = tl.arange(0, {depth})")
    source.line(f"{left}_tile_ptr = {left}_ptr + row_read * {rows} + step[None, :]")
    wide = "column_read.to(tl.int64)" if term.strided else "column_read"
    source.line(f"{right}_tile_ptr = {right}_ptr + {_times(wide, across)} + {_times('step[:, None]', along)}")
    if term.depth <= depth:
        _step(source, plan, left, right, f"step{{}} < {term.depth}" if ragged else "")
        return
    with source.block(f"for start in range(0, {term.depth}, {depth})"):
        _step(source, plan, left, right, f"step{{}} < {term.depth} - start" if ragged else "")
        source.line(f"{left}_tile_ptr += {depth}")
        source.line(f"{right}_tile_ptr += {_times(str(depth), along)}")


def _step(source: Source, plan: Plan, left: str, right: str, inside: str) -> None:
    for name, index in ((left, "[None, :]"), (right, "[:, None]")):
        masked = f", mask={inside.format(index)}, other=0.0" if inside else ""
        source.line(f"{name}_tile = tl.load({name}_tile_ptr{masked})")
    source.line(f"acc = {dot(plan, f'{left}_tile', f'{right}_tile', 'acc')}")


def _times(index: str, stride: str) -> str:
    return index if stride == "1" else f"{index} * {stride}"


def dot(plan: Plan, left: str, right: str, acc: str = "") -> str:
    """The text of a product of two tiles of the layer's dtype, accumulated in float32."""
    into = f", {acc}" if acc else ""
    if plan.exact:
        return f'tl.dot({left}, {right}{into}, input_precision="{plan.precision}")'
    if plan.backend == "interpreter":  # numpy has no bfloat16; float32 products of such numbers are the same
        return f"tl.dot({left}.to(tl.float32), {right}.to(tl.float32){into})"
    return f"tl.dot({left}, {right}{into})"

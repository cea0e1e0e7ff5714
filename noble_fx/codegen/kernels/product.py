"""Products that share one accumulator: out = Σ leftᵢ · rightᵢ (+ bias), each tile of `out` written once.

The main product and the branch's small one are two terms of the same sum, so the branch adds steps to the main loop
and neither reads nor writes `out` again. Forward: y = x Wᵀ + b + t Uᵀ. Backward: dx = dy W + dh D. With several sites
that read one x, forward has one list of terms a site (each its own `out`), backward one long list.
"""

from __future__ import annotations

from dataclasses import dataclass

from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.plan import DTYPES, GENERATOR, Plan, Tile
from noble_fx.codegen.source import Source

_SWEEP = 8  # row tiles that neighbouring programs share before the next column tile: W stays in the cache


@dataclass(frozen=True)
class Term:
    """left [rows, depth] · right, where right is stored [columns, depth] (`transposed`) or [depth, columns].

    `strided`: the tensor's strides are arguments, else it is contiguous.
    """

    left: str
    right: str
    depth: int
    transposed: bool
    strided: bool

    @property
    def law(self) -> str:
        """The product as one writes it."""
        return f"{self.left} · {self.right}{'ᵀ' if self.transposed else ''}"


@dataclass(frozen=True)
class Out:
    """One result [rows, columns], the terms of its sum, and the bias that it starts from."""

    name: str
    columns: int
    terms: tuple[Term, ...]
    bias: str = ""


def product(plan: Plan, tile: Tile, name: str, title: str, outs: tuple[Out, ...]) -> Kernel:
    """One kernel for all `outs`; programs run over the column tiles of one after the other."""
    source = Source()
    dtype = DTYPES[plan.layer.dtype]
    element = f"*{dtype}"
    arguments: dict[str, Argument] = {}
    for out in outs:
        for term in out.terms:
            _declare(arguments, element, f"{term.left}_ptr", f"{term.right}_ptr")
        _declare(arguments, element, *([f"{out.bias}_ptr"] if out.bias else []), f"{out.name}_ptr")
    _declare(arguments, "i32", "rows", *_strides(outs))
    tiles = [-(-out.columns // tile.columns) for out in outs]
    facts = [
        *(f"{out.name} [rows, {out.columns}]  =  {'  +  '.join(term.law for term in out.terms)}" for out in outs),
        f"{dtype}; one program: {tile.rows} rows × {tile.columns} columns, steps of {tile.depth}; float32 accumulator",
        f"{plan.backend} · {tile.warps} warps · {tile.stages} stages · generator {GENERATOR}",
    ]
    source.header(f"{name}: {title}", facts)
    with source.function(name, list(arguments.values())):
        _place(source, tile, sum(tiles))
        _choose_site(source, outs, tiles)
        _body(source, plan, tile, outs)
    itemsize = plan.layer.dtype.itemsize
    lefts = {term.left: term.depth for out in outs for term in out.terms}
    weights = sum(term.depth * out.columns for out in outs for term in out.terms)
    return Kernel(
        name=name,
        source=str(source),
        arguments=tuple(arguments.values()),
        row_tile=tile.rows,
        blocks=sum(tiles),
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * weights,
        bytes_per_row=itemsize * (sum(lefts.values()) + sum(out.columns for out in outs)),
        bytes_once=itemsize * (weights + sum(out.columns for out in outs if out.bias)),
    )


def _declare(arguments: dict[str, Argument], kind: str, *names: str) -> None:
    for name in names:
        arguments.setdefault(name, Argument(name, kind))


def _strides(outs: tuple[Out, ...]) -> list[str]:
    names: list[str] = []
    for out in outs:
        for term in out.terms:
            if term.strided:
                names += [f"{term.left}_stride_0", f"{term.right}_stride_0", f"{term.right}_stride_1"]
    return names


def _place(source: Source, tile: Tile, columns: int) -> None:
    source.paragraph(f"which tile: {_SWEEP} tiles of rows, then the next tile of columns")
    source.line("program = tl.program_id(0)")
    source.line(f"row_tiles = tl.cdiv(rows, {tile.rows})")
    source.line(f"sweep = program // {_SWEEP * columns}")
    source.line(f"sweep_rows = tl.minimum(row_tiles - sweep * {_SWEEP}, {_SWEEP})")
    source.line(f"place = program % {_SWEEP * columns}")
    source.line(f"row_tile = sweep * {_SWEEP} + place % sweep_rows")
    source.line("column_tile = place // sweep_rows")


def _choose_site(source: Source, outs: tuple[Out, ...], tiles: list[int]) -> None:
    """Several outs: the tensors of the one that this program belongs to take the names of the first."""
    if len(outs) == 1:
        return
    source.paragraph("whose tile: the sites lie one after the other")
    first = 0
    for site, (out, count) in enumerate(zip(outs, tiles, strict=True)):
        head = "if" if site == 0 else "elif" if site < len(outs) - 1 else "else"
        condition = "" if head == "else" else f" column_tile < {first + count}"
        with source.block(f"{head}{condition}"):
            for mine, given in _renamed(outs[0], out):
                source.line(f"{mine} = {given}")
            source.line(f"columns = {out.columns}")
            if site:
                source.line(f"column_tile -= {first}")
        first += count


def _renamed(first: Out, out: Out) -> list[tuple[str, str]]:
    """(name in the body, argument) of every tensor that differs between the sites."""
    pairs = [(f"{_plain(first.name)}_ptr", f"{out.name}_ptr")]
    if first.bias:
        pairs.append((f"{_plain(first.bias)}_ptr", f"{out.bias}_ptr"))
    for mine, theirs in zip(first.terms, out.terms, strict=True):
        pairs.append((f"{_plain(mine.right)}_ptr", f"{theirs.right}_ptr"))
        if _plain(mine.left) != mine.left:
            pairs.append((f"{_plain(mine.left)}_ptr", f"{theirs.left}_ptr"))
        if mine.strided:
            pairs += [(f"{_plain(mine.right)}_stride_{axis}", f"{theirs.right}_stride_{axis}") for axis in (0, 1)]
    return pairs


def _plain(name: str) -> str:
    return name.rstrip("0123456789").rstrip("_")


def _body(source: Source, plan: Plan, tile: Tile, outs: tuple[Out, ...]) -> None:
    out, several = outs[0], len(outs) > 1
    show = _plain if several else str
    columns = "columns" if several else str(out.columns)
    ragged = any(one.columns % tile.columns for one in outs)
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
    source.paragraph(f"{out.name.split('_')[0]} is written here and nowhere else")
    mask = "row[:, None] < rows" + (f") & (column[None, :] < {columns})" if ragged else "")
    mask = f"({mask}" if ragged else mask
    name = show(out.name)
    source.line(f"{name}_tile_ptr = {name}_ptr + row[:, None] * {columns} + column[None, :]")
    source.line(f"tl.store({name}_tile_ptr, acc.to({name}_ptr.dtype.element_ty), mask={mask})")


def _term(source: Source, plan: Plan, tile: Tile, term: Term, show: type | object, columns: str) -> None:
    """acc += left · right, in steps along the depth that the two share."""
    left, right = show(term.left), show(term.right)  # type: ignore[operator]
    depth = min(tile.depth, 1 << max(4, (term.depth - 1).bit_length()))
    ragged = bool(term.depth % depth)
    along, across = (f"{right}_stride_1", f"{right}_stride_0") if term.strided else ("1", str(term.depth))
    if not term.transposed:
        along, across = (across, along) if term.strided else (columns, "1")
    rows = f"{left}_stride_0" if term.strided else str(term.depth)
    source.paragraph(f"{left} · {right}{'ᵀ' if term.transposed else ''}")
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

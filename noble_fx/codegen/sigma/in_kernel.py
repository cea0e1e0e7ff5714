"""σ inside a kernel: its inputs bound to loads, its lines, its results stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from noble_fx.branches.trace import ActivationProgram, Untraceable
from noble_fx.codegen.kernel import Argument
from noble_fx.codegen.kernels.product import dot
from noble_fx.codegen.plan import DTYPES, Layer, Plan, Tile
from noble_fx.codegen.sigma.axes import Segment
from noble_fx.codegen.sigma.lower import Loads, Lowering, Place, Value, channels
from noble_fx.codegen.sigma.typed import typed_program
from noble_fx.codegen.source import Source
from noble_fx.errors import KernelError

_TYPES = {"torch.bool": "i1", "torch.int64": "i64", "torch.int32": "i32", "torch.uint8": "i8"}


def activation(layer: Layer) -> ActivationProgram:
    """σ's typed graphs; raises `KernelError` with the reason where there are none."""
    try:
        program = typed_program(layer.act, layer.rank)
    except Untraceable as reason:
        raise KernelError(str(reason)) from None
    names = list(map(tensor_name, program.names))
    if len(set(names)) < len(names):
        raise KernelError(f"two of σ's tensors have one name in a kernel: {', '.join(sorted(names))}")
    return program


def tensor_name(name: str) -> str:
    """What a kernel calls one of σ's tensors."""
    return f"act_{name.replace('.', '_')}"


def tensor_arguments(layer: Layer, graph: fx.Graph, names: Sequence[str], site: int | None = None) -> list[Argument]:
    """Pointers to those of a graph's inputs that are σ's tensors, of one site or of the only one."""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    found = []
    for name, node in zip(names, nodes, strict=True):
        if name.startswith("act_"):
            dtype = node.meta["val"].dtype
            kind = DTYPES[layer.act_dtype] if dtype.is_floating_point else _TYPES[str(dtype)]
            found.append(Argument(f"{name if site is None else layer.name(name, site)}_ptr", f"*{kind}"))
    return found


@dataclass
class Sigma:
    """One of σ's graphs in one kernel; `names` are its inputs: "act_…" σ's tensors, others [rows, width]."""

    plan: Plan
    source: Source
    tile: Tile
    graph: fx.Graph
    names: Sequence[str]
    site: int | None = None  # None: the tensors' names carry no site

    def __post_init__(self) -> None:
        self.low = Lowering(self.graph, self.plan, self.source, self.tile.rows)
        self.inputs = dict(zip(self.names, self.low.inputs, strict=True))
        arguments = iter(tensor_arguments(self.plan.layer, self.graph, self.names, self.site))
        for name, node in self.inputs.items():
            if name.startswith("act_"):
                self._bind_load(node, next(arguments))

    def segments(self, node: Any) -> list[Segment]:
        """The channel tiles of a value [rows, width]."""
        return self.low.segments(self.low.axes_of(node)[1])

    def bind(self, node: fx.Node, name: str) -> None:
        """An input [rows, r] that the kernel has already, in variables `name`, one for each tile of channels."""

        def load(value: Value) -> None:
            for place in self.low.places(value):
                value.tiles[place] = tile_name(name, place[1], self.segments(node))

        self.low.bind(node, load)

    def _bind_load(self, node: fx.Node, argument: Argument) -> None:
        shape = tuple(node.meta["val"].shape)
        cast = "" if argument.type in ("*fp32", "*i1", "*i32", "*i64", "*i8") else ".to(tl.float32)"

        def load(value: Value) -> None:
            value.clean, value.loaded = True, len(shape) == 2

            def write(place: Place) -> str:
                name = "_".join([argument.name.removesuffix("_ptr"), *self.low.cut(value, place)])
                address, mask = self.address(argument.name, place, shape)
                if "&" in mask:
                    self.source.line(f"inside = {mask}")
                    mask = "inside"
                masked = f", mask={mask}, other=0" if mask else ""
                self.source.line(f"{name} = tl.load({address}{masked}){cast}")
                return name

            value.tiles = Loads(write, again=value.loaded)

        self.low.bind(node, load)

    def address(self, base: str, place: Place, shape: Sequence[int]) -> tuple[str, str]:
        """The text of a tile's addresses in a contiguous tensor of channels, and of its mask ("" where none)."""
        terms, stride = [base], 1
        masks: list[str] = []
        for at in reversed(range(len(place))):
            spread = "" if len(place) == 1 else "[:, None]" if at == 0 else "[None, :]"
            index = f"{self.low.index(place[at])}{spread}"
            terms.insert(1, index if stride == 1 else f"{index} * {stride}")
            if place[at].padded:
                masks.insert(0, self.low.bound(place[at], spread))
            stride *= shape[at]
        joined = masks[0] if len(masks) == 1 else " & ".join(f"({mask})" for mask in masks)
        return " + ".join(terms), joined

    def load_rows(self, name: str) -> None:
        """Read an input [rows, width] of float32 or, for dt, of the layer's dtype."""
        node = self.inputs[name]
        segments = self.segments(node)
        width = self.low.axes.size(self.low.axes_of(node)[1])
        cast = ".to(tl.float32)" if name == "dt" and not self.plan.exact else ""
        for segment in segments:
            index, last = self.low.index(segment), segment.start + segment.size - 1
            index = f"tl.minimum({index}, {last})" if segment.padded else index
            address = f"{name}_ptr + row_read * {width} + {index}[None, :]"
            self.source.line(f"{tile_name(name, segment, segments)} = tl.load({address}){cast}")

    def store_rows(self, node: Any, tensor: str) -> None:
        """Write a result [rows, width] to `tensor`."""
        value = self.low.value(node)
        width = self.low.axes.size(value.axes[1])
        for place in self.low.places(value):
            index = f"{self.low.index(place[1])}[None, :]"
            inside = f"live[:, None] & ({self.low.bound(place[1], '[None, :]')})" if place[1].padded else ""
            text = self.low.solid(value.tiles[place], place)
            store_rows(self.source, tensor, index, width, text, inside)


def store_rows(source: Source, tensor: str, index: str, columns: int, text: str, inside: str) -> None:
    """Write one tile of a tensor [rows, columns], contiguous."""
    address = f"{tensor}_ptr + row[:, None] * {columns} + {index}"
    source.line(f"tl.store({address}, {text}, mask={inside or 'live[:, None]'})")


def tile_name(base: str, segment: Segment, segments: Sequence[Segment]) -> str:
    """The variable that holds one tile of the bottleneck: `h`, or `h_c0`, `h_c128` where there are several."""
    return base if len(segments) == 1 else f"{base}_c{segment.start}"


def begin_rows(source: Source, rows: int, program: str) -> None:
    """The row numbers of this program; reads past the end are clamped, and `live` masks what they compute."""
    source.line(f"row = {program}.to(tl.int64) * {rows} + tl.arange(0, {rows})")
    source.line("live = row < rows")
    source.line("row_read = tl.minimum(row, rows - 1)[:, None]")


@dataclass(frozen=True)
class Narrow:
    """One of the narrow results of a bottleneck product: variable, right operand, and its tiles of channels."""

    name: str
    right: str
    segments: tuple[Segment, ...]


def narrow_products(
    source: Source, plan: Plan, tile: Tile, left: str, depth: str, outs: Sequence[Narrow], transposed: bool
) -> None:
    """left [rows, depth] times narrow right operands, all in one loop over the depth; left is read once.

    `transposed`: right is stored [r, depth], as D is; else [depth, r], as U is. `depth` is a number or a variable.
    """
    rank = plan.layer.rank
    ragged = not depth.isdigit() or int(depth) % tile.depth
    source.line(f"step = tl.arange(0, {tile.depth})")
    source.line(f"{left}_tile_ptr = {left}_ptr + row_read * {left}_stride_0 + step[None, :]")
    accumulators = []
    for out in outs:
        for segment in out.segments:
            name, right = tile_name(out.name, segment, out.segments), tile_name(out.right, segment, out.segments)
            index = channels(source, segment, rank)
            last = segment.start + segment.size - 1
            index = f"tl.minimum({index}, {last})[None, :]" if segment.padded else f"{index}[None, :]"
            place = f"{index} * {depth} + step[:, None]" if transposed else f"{index} + step[:, None] * {rank}"
            source.line(f"{right}_tile_ptr = {out.right}_ptr + {place}")
            source.line(f"{name} = tl.zeros([{tile.rows}, {segment.tile}], tl.float32)")
            accumulators.append((name, right))
    with source.block(f"for start in range(0, {depth}, {tile.depth})"):
        mask = f", mask=step{{}} < {depth} - start, other=0.0" if ragged else ""
        source.line(f"{left}_tile = tl.load({left}_tile_ptr{mask.format('[None, :]')})")
        source.line(f"{left}_tile_ptr += {tile.depth}")
        for name, right in accumulators:
            source.line(f"{right}_tile = tl.load({right}_tile_ptr{mask.format('[:, None]')})")
            source.line(f"{name} = {dot(plan, f'{left}_tile', f'{right}_tile', name)}")
            source.line(f"{right}_tile_ptr += {tile.depth if transposed else tile.depth * rank}")

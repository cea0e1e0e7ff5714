"""σ's graphs as lines of Triton: one row of a table per aten operator.

Two walks over a typed graph (`trace_activation.typed_program`). The first gives every value its axes and cuts them into
tiles (`axes.py`); the second writes one line per operator and tile. Pointwise operators are rows of `pointwise.py`, all
others rows of `structure.py`: products, sums, transposes, views, slices, concatenations, constants.

Lanes that hold nothing must not leak (cos 0 = 1): a tile is masked before it enters a sum or a product along an axis
that has such lanes, padded channels and rows past the end alike. Pointwise lines need no mask, and stores have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product as combinations
from typing import Any

import torch
from torch import Tensor, fx

from noble_fx.codegen.plan import Plan, widest_tile
from noble_fx.codegen.sigma.axes import LANE, UNIT, Axes, Segment
from noble_fx.codegen.sigma.operators import structure
from noble_fx.codegen.sigma.operators.pointwise import is_pointwise, number, pointwise
from noble_fx.codegen.sigma.typed import ROWS
from noble_fx.codegen.source import Source
from noble_fx.errors import KernelError

Place = tuple[Segment, ...]  # which tile of a value: one segment an axis


@dataclass
class Value:
    """The axes of one value of the graph, and the text (a name or a number) of each of its tiles."""

    axes: tuple[int, ...]
    tiles: dict[Place, str]
    clean: bool = False  # lanes that hold nothing are zero
    loaded: bool = False  # at every use, not once: a matrix would fill the registers


class Loads(dict[Place, str]):
    """Tiles that are written when they are asked for: once, or at every use."""

    def __init__(self, write: Callable[[Place], Any], again: bool):
        super().__init__()
        self._write, self._again = write, again

    def __missing__(self, place: Place) -> str:
        text = self._write(place)
        if not self._again:
            self[place] = text
        return text


class Lowering:
    """One graph on its way to text: `bind` every input, then `write`, then read the `outputs`."""

    def __init__(self, graph: fx.Graph, plan: Plan, source: Source, row_tile: int):
        self.plan, self.source, self.axes = plan, source, Axes(widest_tile(plan.layer.rank))
        self._rows = Segment(0, ROWS, row_tile)
        self.nodes = list(graph.nodes)
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        results = self.nodes[-1].args[0]
        self.outputs: list[Any] = list(results) if isinstance(results, (tuple, list)) else [results]
        self._values: dict[fx.Node, Value] = {}
        self._loads: dict[fx.Node, Callable[[Value], None]] = {}
        self._masks: set[str] = set()
        for node in self.nodes[:-1]:
            self._type(node)
        self.axes.settle()

    # --- what the rows of `structure.py` and the kernels ask ------------------------------------------------------

    def bind(self, node: fx.Node, load: Callable[[Value], None]) -> None:
        """How an input's tiles come about: `load` fills them in when they are first used."""
        self._loads[node] = load

    def write(self) -> None:
        """One line per operator and tile, in the order of the graph."""
        for node in self.nodes:
            if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
                value, row = self._values[node], structure.TABLE.get(node.target)
                if row is not None and row.moves:
                    given = self.value(node.args[0])
                    value.clean, value.loaded = given.clean, given.loaded
                if value.loaded or (row is not None and row.inline):
                    value.tiles = Loads(partial(structure.TABLE[node.target].text, self, node, value), again=True)
                    continue
                for place in self.places(value):
                    value.tiles[place] = self._line(node, value, place)

    def axes_of(self, node: Any) -> tuple[int, ...]:
        """The axes of a value."""
        return self._values[node].axes

    def value(self, node: Any) -> Value:
        """A value with its tiles; an input is loaded here if it was not yet."""
        if node in self._loads:
            self._loads.pop(node)(self._values[node])
        return self._values[node]

    def segments(self, axis: int) -> list[Segment]:
        """The tiles along an axis."""
        return [self._rows] if self.axes.is_rows(axis) else self.axes.segments(axis)

    def places(self, value: Value) -> Iterator[Place]:
        """Every tile of a value."""
        yield from combinations(*(self.segments(axis) for axis in value.axes))

    def tie(self, one: int, other: int) -> int:
        """Two axes that must be cut alike; raises `KernelError` where the rows meet a channel axis."""
        try:
            return self.axes.tie(one, other)
        except ValueError as error:
            raise KernelError(str(error)) from None

    def axis(self, size: int) -> int:
        """The rows, an axis of size one, or a channel axis of its own."""
        if size % ROWS == 0 and size != ROWS:
            raise KernelError("the rows share an axis with channels")
        return Axes.ROWS if size == ROWS else self.axes.new(size)

    def index(self, segment: Segment) -> str:
        """The name of a segment's channel numbers; written where it is first used."""
        return channels(self.source, segment, self.plan.layer.rank)

    def bound(self, segment: Segment, spread: str = "") -> str:
        """The mask of the lanes that hold a channel; empty where all do. `spread` indexes it to a tile's shape."""
        return f"{self.index(segment)}{spread} < {segment.start + segment.size}" if segment.padded else ""

    def solid(self, text: str, place: Place) -> str:
        """A tile, where the text may be a mere number."""
        return f"tl.full([{sides(place)}], {text}, tl.float32)" if is_number(text) and place else text

    def masked(self, value: Value, place: Place, along: Sequence[int], fill: str = "0.0") -> str:
        """A tile with `fill` where it holds nothing along the given axes."""
        text = self.solid(value.tiles[place], place)
        for at in along:
            spread = "" if len(place) == 1 else "[:, None]" if at == 0 else "[None, :]"
            if self.axes.is_rows(value.axes[at]):
                text = self._masked(text, "live", f"live{spread}", fill)
            elif place[at].padded and not (value.clean and fill == "0.0"):
                text = self._masked(text, f"valid_{at}", self.bound(place[at], spread), fill)
        return text

    def _masked(self, text: str, kind: str, mask: str, fill: str) -> str:
        where = f"tl.where({mask}, {text}, {fill})"
        if not text.isidentifier() or fill != "0.0":
            return where
        if where not in self._masks:
            self._masks.add(where)
            self.source.line(f"{text}_{kind} = {where}")
        return f"{text}_{kind}"

    def operand(self, arg: Any, value: Value, place: Place) -> str:
        """An operand of a broadcasting operator, for one tile of its result."""
        if not isinstance(arg, fx.Node):
            return number(arg)
        mine = self.value(arg)
        offset = len(value.axes) - len(mine.axes)
        found = tuple(LANE if axis == UNIT else place[offset + at] for at, axis in enumerate(mine.axes))
        text = mine.tiles[found]
        return f"{text}[None, :]" if offset and mine.axes and not is_number(text) else text

    def is_tile(self, text: str) -> bool:
        """False for a number."""
        return not is_number(text)

    def name(self, node: fx.Node, place: Place) -> str:
        """The variable of one tile: the node's name, with the first channel where there are several tiles."""
        return "_".join([node.name, *self.cut(self._values[node], place)])

    def cut(self, value: Value, place: Place) -> list[str]:
        """The first channel of a tile along each axis that is held in several."""
        return [f"c{s.start}" for s, axis in zip(place, value.axes, strict=True) if len(self.segments(axis)) > 1]

    # --- the two walks -------------------------------------------------------------------------------------------

    def _type(self, node: fx.Node) -> None:
        held = node.meta.get("val")
        if not isinstance(held, Tensor):
            if node.target not in structure.LISTS:
                raise KernelError(f"{node.target} is not in the lowering table")
            return
        if held.dtype == torch.float64 or held.is_complex():
            raise KernelError(f"{node.target} computes in {held.dtype}")
        row = structure.TABLE.get(node.target)
        if node.op == "placeholder":
            axes: Sequence[int] = [self.axis(size) for size in held.shape]
        elif row is None and not is_pointwise(node.target):
            raise KernelError(f"{node.target} is not in the lowering table")
        else:
            axes = row.axes(self, node) if row else self._broadcast(node)
        self._values[node] = Value(tuple(axes), {})

    def _broadcast(self, node: fx.Node) -> list[int]:
        axes = [UNIT] * node.meta["val"].ndim
        for arg in node.all_input_nodes:
            mine = self._values[arg].axes
            for place, axis in enumerate(mine, len(axes) - len(mine)):
                axes[place] = self.tie(axes[place], axis)
        return axes

    def _line(self, node: fx.Node, value: Value, place: Place) -> str:
        row = structure.TABLE.get(node.target)
        text = row.text(self, node, value, place) if row else self._pointwise(node, value, place)
        if text is None:
            raise KernelError(f"{node.target} with {node.args[1:]} {node.kwargs or ''} is not in the lowering table")
        if text.isidentifier() or is_number(text):  # needs no line of its own
            return text
        name = self.name(node, place)
        self.source.line(f"{name} = {text}")
        return name

    def _pointwise(self, node: fx.Node, value: Value, place: Place) -> str | None:
        operands = [self.operand(arg, value, place) for arg in node.args]
        if value.axes and all(map(is_number, operands)):
            operands[0] = self.solid(operands[0], place)
        return pointwise(self.plan, node.target, operands, dict(node.kwargs))


def channels(source: Source, segment: Segment, rank: int) -> str:
    """The name of a segment's channel numbers; their line is written once."""
    whole = segment.start == 0 and segment.size == rank
    name = "channel" if whole else f"channel_{segment.start}_{segment.start + segment.size}"
    offset = f"{segment.start} + " if segment.start else ""
    source.once(f"{name} = {offset}tl.arange(0, {segment.tile})")
    return name


def sides(place: Place) -> str:
    """The shape of a tile."""
    return ", ".join(str(segment.tile) for segment in place)


def is_number(text: str) -> bool:
    """True for the text of a number."""
    try:
        float(text)
    except ValueError:
        return text.startswith('float("') and text.endswith('")') and text.count("(") == 1
    return True

"""σ's graphs as lines of Triton: one row of a table per aten operator.

Two walks over a typed graph (`typed.py`). The first gives every value its axes and cuts them into tiles (`axes.py`);
the second writes one line per operator and tile. Pointwise operators are rows of `operators/pointwise.py`, all others
rows of `operators/structure.py`: products, sums, transposes, views, slices, concatenations, constants.

Lanes that hold nothing must not leak (cos 0 = 1): a tile is masked before it enters a sum or a product along an axis
that has such lanes, padded channels and rows past the end alike. Pointwise lines need no mask, and stores have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product as combinations
from typing import Any

import torch
from torch import Tensor, fx

from noble_fx.codegen.code import Code, Mask
from noble_fx.codegen.plan import Plan, widest_tile
from noble_fx.codegen.sigma.axes import LANE, UNIT, Axes, Segment
from noble_fx.codegen.sigma.operators import structure
from noble_fx.codegen.sigma.operators.pointwise import is_pointwise, pointwise
from noble_fx.codegen.sigma.tiles import Loads, Place, Tiling, Value, bound, channel_numbers, shape_of, solid, spread
from noble_fx.codegen.sigma.typed import ROWS
from noble_fx.codegen.source import Source
from noble_fx.errors import KernelError


class Lowering(Tiling):
    """One graph on its way to text: `bind` every input, then `write`, then read the `outputs`.

    `names` are the variables of values that have a name in the maths. `walk`: where no channel meets another, a
    program holds one tile of them only, and the grid walks over the others (`channel_tiles` says how many).
    """

    def __init__(
        self,
        graph: fx.Graph,
        plan: Plan,
        source: Source,
        row_tile: int,
        names: Mapping[fx.Node, str] | None = None,
        walk: bool = False,
    ):
        self.plan, self.source, self.axes = plan, source, Axes(widest_tile(plan.layer.rank))
        self._rows = Segment(0, ROWS, row_tile)
        self._names = names or {}
        self.nodes = list(graph.nodes)
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        self.outputs = outputs_of(graph)
        self._values: dict[fx.Node, Value] = {}
        self._loads: dict[fx.Node, Callable[[Value], None]] = {}
        self._masks: set[str] = set()
        gathered = [axis for node in self.nodes[:-1] for axis in self._type(node)]
        self.axes.settle(walk and self._channels_apart(gathered))

    @property
    def channel_tiles(self) -> int:
        """Over how many tiles of channels the grid walks."""
        return -(-self.axes.walked // widest_tile(self.plan.layer.rank)) or 1

    # --- what the rows of the tables and the kernels ask -----------------------------------------------------------

    def bind(self, node: fx.Node, load: Callable[[Value], None]) -> None:
        """How an input's tiles come about: `load` fills them in when they are first used."""
        self._loads[node] = load

    def write(self) -> None:
        """One line per operator and tile, in the order of the graph."""
        for node in self.nodes:
            if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
                value, row = self._values[node], structure.TABLE.get(node.target)
                if row is not None and row.moves:
                    moved = self.value(node.args[0])
                    value.clean, value.loaded = moved.clean, moved.loaded
                if row is not None and (value.loaded or row.inline):
                    value.tiles = Loads(partial(self._code, node, value), again=True)
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

    def tie(self, left: int, right: int) -> int:
        """Two axes that must be cut alike; raises `KernelError` where the rows meet a channel axis."""
        try:
            return self.axes.tie(left, right)
        except ValueError as error:
            raise KernelError(str(error)) from None

    def axis(self, size: int) -> int:
        """The rows, an axis of size one, or a channel axis of its own."""
        if size % ROWS == 0 and size != ROWS:
            raise KernelError("the rows share an axis with channels")
        return Axes.ROWS if size == ROWS else self.axes.new(size)

    def index(self, segment: Segment) -> str:
        """The name of a segment's channel numbers; written where it is first used."""
        return channel_numbers(self.source, segment, self.plan.layer.rank)

    def bound(self, segment: Segment, index: str = "") -> Mask:
        """The lanes that hold a channel; `index` spreads the channel numbers to a tile's shape."""
        return bound(self.source, segment, self.plan.layer.rank, index)

    def masked(self, value: Value, place: Place, along: Sequence[int], fill: str = "0.0") -> Code:
        """A tile with `fill` where it holds nothing along the given axes."""
        code = solid(value.tiles[place], place)
        for at in along:
            index = spread(place, at)
            if self.axes.is_rows(value.axes[at]):
                code = self._masked(code, "live", Mask((Code.call(f"live{index}"),)), fill)
            elif place[at].padded and not (value.clean and fill == "0.0"):
                code = self._masked(code, f"valid_{at}", self.bound(place[at], index), fill)
        return code

    def _masked(self, code: Code, suffix: str, mask: Mask, fill: str) -> Code:
        where = Code.call(f"tl.where({mask}, {code}, {fill})")
        if not code.is_name or fill != "0.0":
            return where
        name = f"{code}_{suffix}"
        if where.text not in self._masks:
            self._masks.add(where.text)
            self.source.line(f"{name} = {where}")
        return Code.name(name)

    def operand(self, arg: Any, value: Value, place: Place) -> Code:
        """An operand of a broadcasting operator, for one tile of its result."""
        if not isinstance(arg, fx.Node):
            return Code.number(arg)
        own = self.value(arg)
        offset = len(value.axes) - len(own.axes)
        code = own.tiles[tuple(LANE if axis == UNIT else place[offset + at] for at, axis in enumerate(own.axes))]
        return Code.call(f"{code.grouped}[None, :]") if offset and own.axes and not code.is_number else code

    def variable(self, node: fx.Node, place: Place) -> str:
        """The variable of one tile: the value's name, with the first channel where there are several tiles."""
        return "_".join([self._names.get(node, node.name), *self.cut(self._values[node], place)])

    def cut(self, value: Value, place: Place) -> list[str]:
        """The first channel of a tile along each axis that is held in several."""
        return [f"c{s.start}" for s, axis in zip(place, value.axes, strict=True) if len(self.segments(axis)) > 1]

    # --- the two walks ---------------------------------------------------------------------------------------------

    def _type(self, node: fx.Node) -> Sequence[int]:
        """Give a value its axes; returns the axes along which its lanes come from several of its operands'."""
        held, row = node.meta.get("val"), structure.TABLE.get(node.target)
        if not isinstance(held, Tensor):
            if node.target not in structure.LISTS:
                raise _not_in_the_table(node)
            return ()
        if held.dtype == torch.float64 or held.is_complex():
            raise KernelError(f"{node.target} computes in {held.dtype}")
        if node.op == "placeholder":
            self._values[node] = Value(tuple(self.axis(size) for size in held.shape))
        elif row is not None:
            self._values[node] = Value(tuple(row.axes(self, node)))
            return row.gathers(self, node)
        elif is_pointwise(node.target):
            self._values[node] = Value(tuple(self._broadcast(node)))
        else:
            raise _not_in_the_table(node)
        return ()

    def _broadcast(self, node: fx.Node) -> list[int]:
        axes = [UNIT] * len(shape_of(node))
        for arg in node.all_input_nodes:
            own = self._values[arg].axes
            for at, axis in enumerate(own, len(axes) - len(own)):
                axes[at] = self.tie(axes[at], axis)
        return axes

    def _channels_apart(self, gathered: Sequence[int]) -> bool:
        """No value has two channel axes, no sum or product runs along one, and every result has one to walk along."""

        def channels(axes: Sequence[int]) -> list[int]:
            return [axis for axis in axes if axis != UNIT and not self.axes.is_rows(axis)]

        widths = [len(channels(value.axes)) for value in self._values.values()]
        results = [len(channels(self.axes_of(node))) for node in self.outputs]
        return not channels(gathered) and max(widths) == 1 and min(results) == 1

    def _code(self, node: fx.Node, value: Value, place: Place) -> Code:
        row = structure.TABLE.get(node.target)
        code = row.code(self, node, value, place) if row else self._pointwise(node, value, place)
        if code is None:
            raise KernelError(f"{node.target} with {node.args[1:]} {node.kwargs or ''} is not in the lowering table")
        return code

    def _line(self, node: fx.Node, value: Value, place: Place) -> Code:
        code = self._code(node, value, place)
        if code.is_name or code.is_number:  # needs no line of its own
            return code
        name = self.variable(node, place)
        self.source.line(f"{name} = {code}")
        return Code.name(name)

    def _pointwise(self, node: fx.Node, value: Value, place: Place) -> Code | None:
        options, args = dict(node.kwargs), [arg for arg in node.args if not isinstance(arg, torch.dtype)]
        if len(args) < len(node.args):
            options["dtype"] = next(arg for arg in node.args if isinstance(arg, torch.dtype))
        operands = [None if arg is None else self.operand(arg, value, place) for arg in args]
        if value.axes and all(code is None or code.is_number for code in operands):
            operands[0] = solid(self.operand(args[0], value, place), place)
        return pointwise(self.plan, node.target, operands, options)


def outputs_of(graph: fx.Graph) -> list[Any]:
    """The results of a graph, in order."""
    results = list(graph.nodes)[-1].args[0]
    return list(results) if isinstance(results, (tuple, list)) else [results]


def _not_in_the_table(node: fx.Node) -> KernelError:
    return KernelError(f"{node.target} is not in the lowering table")

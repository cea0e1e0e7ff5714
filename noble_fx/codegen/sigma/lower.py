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
from noble_fx.codegen.sigma.operators.dtypes import TRITON, cast, number
from noble_fx.codegen.sigma.operators.pointwise import CASTS, TABLE, arguments, is_pointwise, pointwise
from noble_fx.codegen.sigma.tiles import Loads, Place, Tiling, Value, bound, channel_numbers, shape_of, solid, spread
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
        self._rows = Segment(0, row_tile, row_tile)
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

    def axis(self, size: int | str) -> int:
        """The rows, an axis of size one, or a channel axis of its own."""
        return Axes.ROWS if isinstance(size, str) else self.axes.new(size)

    def index(self, segment: Segment) -> str:
        """The name of a segment's channel numbers; written where it is first used."""
        return channel_numbers(self.source, segment, self.plan.layer.rank)

    def bound(self, segment: Segment, index: str = "") -> Mask:
        """The lanes that hold a channel; `index` spreads the channel numbers to a tile's shape."""
        return bound(self.source, segment, self.plan.layer.rank, index)

    def masked(self, value: Value, place: Place, along: Sequence[int], fill: float = 0) -> Code:
        """A tile with the number `fill` where it holds nothing along the given axes."""
        code, empty = solid(value.tiles[place], place, value.dtype), number(float(fill), value.dtype)
        for at in along:
            index = spread(place, at)
            if self.axes.is_rows(value.axes[at]):
                code = self._masked(code, "live", Mask((Code.call(f"live{index}"),)), empty)
            elif place[at].padded and not (value.clean and fill == 0):
                code = self._masked(code, f"valid_{at}", self.bound(place[at], index), empty)
        return code

    def _masked(self, code: Code, suffix: str, mask: Mask, empty: Code) -> Code:
        where = Code.call(f"tl.where({mask}, {code}, {empty})")
        if not code.is_name or empty.value != 0:
            return where
        name = f"{code}_{suffix}"
        if where.text not in self._masks:
            self._masks.add(where.text)
            self.source.line(f"{name} = {where}")
        return Code.name(name)

    def operand(self, arg: Any, value: Value, place: Place) -> Code:
        """An operand of a broadcasting operator, for one tile of its result."""
        own = self.value(arg)
        offset = len(value.axes) - len(own.axes)
        code = own.tiles[tuple(LANE if axis == UNIT else place[offset + at] for at, axis in enumerate(own.axes))]
        if not offset or not own.axes or code.is_number:
            return code
        return Code.call(f"{code.grouped}[{', '.join(['None'] * offset + [':'] * len(own.axes))}]")

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
        if held.dtype not in TRITON:
            raise KernelError(f"{node.target} computes in {held.dtype}")
        if 0 in shape_of(node):
            raise KernelError(f"{node.target} makes a value without channels, which no tile holds")
        if node.op == "placeholder":
            self._values[node] = Value(self._flat(node, [*map(self.axis, shape_of(node))]), held.dtype)
        elif row is not None:
            if row.computes:
                _check_floats(node)
            self._values[node] = Value(self._flat(node, row.axes(self, node)), held.dtype)
            return row.gathers(self, node)
        elif is_pointwise(node.target):
            self._values[node] = Value(self._flat(node, self._broadcast(node)), held.dtype)
        else:
            raise _not_in_the_table(node)
        return ()

    def _flat(self, node: fx.Node, axes: Sequence[int]) -> tuple[int, ...]:
        """The axes of a value, of which two may be longer than one: a tile has a height and a width."""
        if sum(axis != UNIT for axis in axes) > 2:
            raise KernelError(f"{node.target} makes a value of more than two axes")
        return tuple(axes)

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
        if node.target in CASTS:
            return cast(self.operand(node.args[0], value, place), self.value(node.args[0]).dtype, value.dtype)
        row = TABLE[node.target]
        dtype = row.dtype(node)
        operands = [
            self._promoted(arg, torch.bool if at == row.mask else dtype, value, place)
            for at, arg in enumerate(arguments(node))
        ]
        numbers = [code for at, code in enumerate(operands) if at != row.mask and code is not None]
        if all(code.is_number for code in numbers):  # no tile says what the result is
            at = operands.index(numbers[0])
            operands[at] = solid(numbers[0], place, dtype)
        return pointwise(self.plan, node.target, operands, dtype)

    def _promoted(self, arg: Any, dtype: torch.dtype, value: Value, place: Place) -> Code | None:
        """An operand in the dtype that its operator computes in."""
        if arg is None:
            return None
        if not isinstance(arg, fx.Node):
            return number(arg, dtype)
        code = cast(self.operand(arg, value, place), self.value(arg).dtype, dtype)
        return code if code.is_number else Code.call(code.grouped)


def outputs_of(graph: fx.Graph) -> list[Any]:
    """The results of a graph, in order."""
    results = list(graph.nodes)[-1].args[0]
    return list(results) if isinstance(results, (tuple, list)) else [results]


def _check_floats(node: fx.Node) -> None:
    for dtype in (node.meta["val"].dtype, *(operand.meta["val"].dtype for operand in node.all_input_nodes)):
        if dtype != torch.float32:
            raise KernelError(f"{node.target} computes in {dtype}")


def _not_in_the_table(node: fx.Node) -> KernelError:
    return KernelError(f"{node.target} is not in the lowering table")

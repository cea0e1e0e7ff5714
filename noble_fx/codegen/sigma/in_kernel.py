"""σ inside a kernel: its inputs bound to loads, its lines, its results by the names that the maths gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from noble_fx.branches.trace import ActivationProgram, Untraceable
from noble_fx.codegen.code import Code, Mask
from noble_fx.codegen.kernel import Operand
from noble_fx.codegen.plan import DTYPES, Layer, Plan, Tile
from noble_fx.codegen.sigma.axes import Segment
from noble_fx.codegen.sigma.letters import letters
from noble_fx.codegen.sigma.lower import Lowering
from noble_fx.codegen.sigma.tiles import Loads, Place, Value, shape_of, spread, tile_name
from noble_fx.codegen.sigma.typed import ROWS, typed_program
from noble_fx.codegen.source import Source
from noble_fx.errors import KernelError

_TYPES = {torch.bool: "i1", torch.int64: "i64", torch.int32: "i32"}
_AS_STORED = {"fp32", *_TYPES.values()}  # loaded as they are; other floats become float32


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


def is_gated(layer: Layer) -> bool:
    """Whether σ holds values that are wider than the bottleneck, as a gate and what it gates; False without σ."""
    try:
        nodes = activation(layer).forward.graph.nodes
    except KernelError:
        return False
    shapes = [shape_of(node) for node in nodes if "shape" in node.meta]
    return any(len(shape) == 2 and shape[0] == ROWS and shape[1] > layer.rank for shape in shapes)


def tensor_name(name: str) -> str:
    """What a kernel calls one of σ's tensors."""
    return f"act_{name.replace('.', '_')}"


def tensor_operands(layer: Layer, graph: fx.Graph, names: Sequence[str], site: int) -> list[Operand]:
    """Those of a graph's inputs that are σ's tensors, of one site."""
    letter_of = {tensor_name(name): letter for name, letter in letters(activation(layer).names).items()}
    operands = []
    for name, node in zip(names, (node for node in graph.nodes if node.op == "placeholder"), strict=True):
        if name in letter_of:
            dtype = node.meta["val"].dtype
            if not dtype.is_floating_point and dtype not in _TYPES:
                raise KernelError(f"σ holds a tensor of {dtype}; kernels take floats, int32, int64 and bool")
            kind = DTYPES[layer.act_dtype] if dtype.is_floating_point else _TYPES[dtype]
            letter = "" if letter_of[name] == name else letter_of[name]
            operands.append(Operand(name, kind, shape_of(node), layer.name(name, site), site, letter))
    return operands


@dataclass
class Sigma:
    """One of σ's graphs in one kernel.

    `names` are its inputs: σ's tensors, others [rows, width]; `site`: whose tensors they are, None where the body has
    names without a site. `results` names the outputs, `walk` lets the grid walk over channels (`axes.py`).
    """

    plan: Plan
    source: Source
    tile: Tile
    graph: fx.Graph
    names: Sequence[str]
    site: int | None = None
    results: Mapping[fx.Node, str] = field(default_factory=dict)
    walk: bool = False

    def __post_init__(self) -> None:
        self.low = Lowering(self.graph, self.plan, self.source, self.tile.rows, self.results, self.walk)
        self.inputs = dict(zip(self.names, self.low.inputs, strict=True))
        for operand in tensor_operands(self.plan.layer, self.graph, self.names, self.site or 0):
            name = operand.tensor if self.site is None else operand.name
            self._bind_load(self.inputs[operand.tensor], name, operand)

    def segments(self, node: Any) -> list[Segment]:
        """The channel tiles of a value [rows, width]."""
        return self.low.segments(self.low.axes_of(node)[1])

    def width(self, node: Any) -> int:
        """Channels of a value [rows, width]."""
        return self.low.axes.size(self.low.axes_of(node)[1])

    def bind(self, node: fx.Node, name: str) -> None:
        """An input [rows, r] that the kernel has already, in variables `name`, one for each tile of channels."""

        def load(value: Value) -> None:
            for place in self.low.places(value):
                value.tiles[place] = Code.name(tile_name(name, place[1], self.segments(node)))

        self.low.bind(node, load)

    def named(self, code: Code, name: str, value: Value, place: Place) -> Code:
        """A result under its own name: a line of its own where a value of another name is the result too."""
        variable = "_".join([name, *self.low.cut(value, place)])
        if code.text != variable:
            self.source.line(f"{variable} = {code}")
        return Code.name(variable)

    def _bind_load(self, node: fx.Node, name: str, operand: Operand) -> None:
        shape = shape_of(node)
        cast = "" if operand.type in _AS_STORED else ".to(tl.float32)"

        def load(value: Value) -> None:
            value.clean, value.loaded = True, len(shape) == 2

            def write(place: Place) -> Code:
                variable = "_".join([name, *self.low.cut(value, place)])
                address, mask = self.address(f"{name}_ptr", place, shape)
                masked = mask.argument(self.source.line, "0")
                self.source.line(f"{variable} = tl.load({address}{masked}){cast}")
                return Code.name(variable)

            value.tiles = Loads(write, again=value.loaded)

        self.low.bind(node, load)

    def address(self, base: str, place: Place, shape: Sequence[int]) -> tuple[str, Mask]:
        """The text of a tile's addresses in a contiguous tensor of channels, and which of its lanes are in it."""
        terms, stride, mask = [base], 1, Mask()
        for at in reversed(range(len(place))):
            index = f"{self.low.index(place[at])}{spread(place, at)}"
            terms.insert(1, index if stride == 1 else f"{index} * {stride}")
            mask = self.low.bound(place[at], spread(place, at)) & mask
            stride *= shape[at]
        return " + ".join(terms), mask

"""σ's graphs as stages: one where the bottleneck is narrow, several with GEMMs between where it is wide.

A wide bottleneck does not fit the registers of one program. Its graph is cut at every product along the channels: the
products go to the vendor's GEMM, what lies between is pointwise and becomes one kernel each. Pointwise values that a
later stage needs again are computed again there, from h; only the operands of products go through memory, in float32.
Backward is cut earlier than forward: it holds more values at once, and forward is cut in float32 alone.

    narrow   bottleneck_backward:  dt = dy U, t, dh, all gradients
    CosNet   activation_backward_0:  cos(ω₁h+φ₁)  →  GEMM with M  →  _1: t, dφ₂, dω₂, …  →  GEMM  →  _2: dh, dω₁, dφ₁
             activation_forward_0:  cos(ω₁h+φ₁)  →  GEMM with M  →  _1: t
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from noble_fx.codegen.plan import Layer, Plan
from noble_fx.codegen.sigma.in_kernel import activation, tensor_name
from noble_fx.codegen.sigma.lower import outputs_of
from noble_fx.codegen.sigma.operators.pointwise import aten
from noble_fx.codegen.sigma.tiles import shape_of
from noble_fx.codegen.sigma.typed import ROWS
from noble_fx.errors import KernelError

_PRODUCTS = (aten.mm.default, aten.addmm.default)


@dataclass(frozen=True)
class Partial:
    """A gradient that is summed over the rows: its name, shape, and its place in a row of `partials`."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


@dataclass(frozen=True)
class Gemm:
    """out = left · right (+ bias), tensors by name, each transposed first where the flag says so."""

    out: str
    left: str
    right: str
    left_transposed: bool = False
    right_transposed: bool = False
    bias: str = ""


@dataclass(frozen=True)
class Stage:
    """One kernel: a graph, the tensors behind its inputs, and what becomes of its outputs."""

    name: str
    graph: fx.Graph
    inputs: tuple[str, ...]  # one a placeholder: "h", "dt", "v_…" are [rows, width], "act_…" σ's tensors
    stores: tuple[tuple[int, str, int], ...]  # (output, tensor, width)
    sums: tuple[tuple[int, Partial], ...]  # (output, gradient); dd is a sum of the output dh

    @property
    def fused(self) -> bool:
        """True for the one that is all of backward, and makes dt = dy U itself."""
        return self.name == "bottleneck_backward"

    @property
    def rows(self) -> tuple[str, ...]:
        """The inputs [rows, width]; dt is one, which `bottleneck_backward` makes itself."""
        return tuple(name for name in self.inputs if not name.startswith("act_"))

    def width(self, name: str) -> int:
        """Channels of an input [rows, width]."""
        nodes = [node for node in self.graph.nodes if node.op == "placeholder"]
        return shape_of(nodes[self.inputs.index(name)])[1]


@dataclass(frozen=True)
class Steps:
    """Kernels and GEMMs in the order in which they run: everything that follows from dt and h, or t from h."""

    steps: tuple[Stage | Gemm, ...]
    partials: tuple[Partial, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The kernels."""
        return tuple(step for step in self.steps if isinstance(step, Stage))

    @property
    def width(self) -> int:
        """Numbers in a row of `partials` [programs, width]; 0 where nothing is summed."""
        return sum(partial.size for partial in self.partials)

    def buffers(self) -> dict[str, int]:
        """Width of every float32 tensor [rows, width] that lives between the steps only."""
        return {name: width for stage in self.stages for _, name, width in stage.stores if name not in ("t", "dh")}


@functools.lru_cache(maxsize=256)
def forward_steps(layer: Layer) -> Steps:
    """How a split forward makes t of h = x Dᵀ + d, a GEMM too; raises `KernelError` where the graph cannot be cut."""
    program = activation(layer)
    names = ("h", *map(tensor_name, program.names))
    return _Cut(layer, program.forward.graph, names, ("t",), []).steps("activation_forward")


def backward_steps(plan: Plan) -> Steps:
    """How this plan runs σ's backward; raises `KernelError` where the graph cannot be cut."""
    return _backward_steps(plan.layer, plan.split_backward)


@functools.lru_cache(maxsize=256)
def _backward_steps(layer: Layer, split: bool) -> Steps:
    program = activation(layer)
    wanted = [at for at in range(program.parameters) if at not in layer.frozen]
    graph = _without_others(program.backward.graph, wanted) if layer.frozen else program.backward.graph
    outputs = list(graph.nodes)[-1].args[0]
    gradients = [f"d_{tensor_name(program.names[at])}" for at in wanted]
    inputs = ("h", *map(tensor_name, program.names), "dt")
    if split:
        return _Cut(layer, graph, inputs, ("t", "dh"), gradients).steps("activation_backward")
    partials = _partials(layer, gradients, list(map(shape_of, outputs[2:])))
    sums = [(_output(partial, gradients), partial) for partial in partials]
    rank = layer.rank
    stage = Stage("bottleneck_backward", graph, inputs, ((0, "t", rank), (1, "dh", rank)), tuple(sums))
    return Steps((stage,), partials)


def _without_others(backward: fx.Graph, wanted: list[int]) -> fx.Graph:
    """The graph that makes t, dh and the gradients that are wanted alone."""
    graph = fx.Graph()
    t, dh, *gradients = graph.graph_copy(backward, {}) or ()  # type: ignore[misc]
    graph.output((t, dh, *(gradients[at] for at in wanted)))
    graph.eliminate_dead_code()
    return graph


def _output(partial: Partial, gradients: list[str]) -> int:
    """Which output of the backward graph a partial sum is; that of d is dh, not yet summed."""
    return 1 if partial.name == "d_down_bias" else 2 + gradients.index(partial.name)


def _partials(layer: Layer, names: Iterable[str], shapes: Iterable[tuple[int, ...]]) -> tuple[Partial, ...]:
    own = [("d_down_bias", (layer.rank,))] if layer.down_bias else []
    partials: list[Partial] = []
    for name, shape in [*own, *zip(names, shapes, strict=True)]:
        partials.append(Partial(name, shape, partials[-1].offset + partials[-1].size if partials else 0))
    return tuple(partials)


class _Cut:
    """Cuts a graph at its products along the channels; it makes `results` [rows, r], then `gradients`."""

    def __init__(
        self, layer: Layer, graph: fx.Graph, names: Sequence[str], results: tuple[str, ...], gradients: list[str]
    ):
        self.layer, self.results, self.gradients = layer, results, gradients
        self.nodes = list(graph.nodes)
        self.outputs = outputs_of(graph)
        self.inputs = dict(zip((node for node in self.nodes if node.op == "placeholder"), names, strict=True))
        self.level: dict[fx.Node, int] = {}
        for node in self.nodes[:-1]:
            before = max((self.level[operand] for operand in node.all_input_nodes), default=0)
            self.level[node] = before + self._is_product(node)
        products = {name: self._sum(node) for name, node in zip(gradients, self.outputs[2:], strict=True)}
        self.over_rows = {name: operands for name, operands in products.items() if operands is not None}

    def steps(self, name: str) -> Steps:
        """Stages, by `name` and level, and GEMMs."""
        summed = [name for name in self.gradients if name not in self.over_rows]
        shapes = [shape_of(self.outputs[2 + self.gradients.index(name)]) for name in summed]
        partials = _partials(self.layer, summed, shapes) if "dh" in self.results else ()
        steps: list[Stage | Gemm] = []
        for level in range(max(self.level.values()) + 1):
            products = [n for n in self.nodes[:-1] if self._is_product(n) and self.level[n] == level + 1]
            if stage := self._stage(f"{name}_{level}", level, products, partials):
                steps.append(stage)
            steps += [self._gemm(node) for node in products]
        steps += [self._row_gemm(name, *operands) for name, operands in self.over_rows.items()]
        return Steps(tuple(steps), partials)

    def _is_product(self, node: fx.Node) -> bool:
        """A product along the channels: [rows, c] · [c, c']."""
        return node.target in _PRODUCTS and shape_of(node)[0] == ROWS

    def _sum(self, node: Any) -> tuple[Any, Any, bool] | None:
        """(left, right, transposed) where a gradient is one product over the rows, leftᵀ · right."""
        turned = False
        while node.target is aten.t.default:
            node, turned = node.args[0], not turned
        if node.target is not aten.mm.default or shape_of(node.args[0])[1] != ROWS:
            return None
        if node.args[0].target is not aten.t.default:
            raise KernelError("a gradient over the rows has an operand that is no plain transpose")
        return node.args[0].args[0], node.args[1], turned

    def _tensor(self, node: Any) -> str:
        """The name of the tensor [rows, c] that holds a value."""
        return self.inputs.get(node) or f"v_{node.name}"

    def _matrix(self, node: Any) -> tuple[str, bool]:
        """The parameter that a product multiplies with, and whether it is transposed."""
        turned = False
        while node.target is aten.t.default:
            node, turned = node.args[0], not turned
        if not self.inputs.get(node, "").startswith("act_"):
            raise KernelError(f"a bottleneck of {self.layer.rank} channels: a product with what is no parameter of σ")
        return self.inputs[node], turned

    def _gemm(self, node: fx.Node) -> Gemm:
        left, right = node.args[-2:]
        name, turned = self._matrix(right)
        bias = self._matrix(node.args[0])[0] if node.target is aten.addmm.default else ""
        return Gemm(f"v_{node.name}", self._tensor(left), name, right_transposed=turned, bias=bias)

    def _row_gemm(self, name: str, left: Any, right: Any, turned: bool) -> Gemm:
        first, second = (right, left) if turned else (left, right)
        return Gemm(name, self._tensor(first), self._tensor(second), left_transposed=True)

    def _stage(self, name: str, level: int, products: list[fx.Node], partials: tuple[Partial, ...]) -> Stage | None:
        wanted: dict[fx.Node, str] = {}
        operands: list[Any] = [node.args[-2] for node in products]
        operands += [operand for left, right, _ in self.over_rows.values() for operand in (left, right)]
        for node in operands:
            if node.op == "placeholder" or self._is_product(node):
                continue  # in memory already
            if self.level[node] == level:
                wanted[node] = self._tensor(node)
        results = zip(self.outputs, self.results, strict=False)  # the gradients come behind them
        stores = [(node, tensor) for node, tensor in results if self.level[node] == level] + list(wanted.items())
        sums = [(self.outputs[_output(partial, self.gradients)], partial) for partial in partials]
        sums = [(node, partial) for node, partial in sums if self.level[node] == level]
        if not stores and not sums:
            return None
        graph, inputs = self._extract([*(node for node, _ in stores), *(node for node, _ in sums)])
        count = len(stores)
        return Stage(
            name,
            graph,
            tuple(inputs),
            tuple((i, tensor, shape_of(node)[1]) for i, (node, tensor) in enumerate(stores)),
            tuple((count + i, partial) for i, (_, partial) in enumerate(sums)),
        )

    def _extract(self, results: list[fx.Node]) -> tuple[fx.Graph, list[str]]:
        """The graph of `results` alone: products come in as inputs, everything else is computed again."""
        needed: set[fx.Node] = set()
        queue = list(results)
        while queue:
            node = queue.pop()
            if node not in needed:
                needed.add(node)
                queue += [] if self._is_product(node) else node.all_input_nodes
        graph, copied, inputs = fx.Graph(), {}, []
        for node in self.nodes:
            if node not in needed or not (node.op == "placeholder" or self._is_product(node)):
                continue
            inputs.append(self._tensor(node))
            copied[node] = graph.placeholder(inputs[-1])
            copied[node].meta = dict(node.meta)
        for node in self.nodes[:-1]:
            if node in needed and node not in copied:
                copied[node] = graph.node_copy(node, copied.__getitem__)
        graph.output(tuple(copied[node] for node in results))
        return graph, inputs

"""`functions=True`: each site one `noble_fx::Linear` node, its maths in a function of the file.

    y = noble_fx::Linear(x, W, b, D, d, U, σ's tensors …)          the node, named like the layer

A viewer shows one box a site; a runtime inlines the function when it loads the file. A body is the operator's own
decomposition, exported once for every kind of site: structure of σ, rank of x, with or without biases. Where there
are several kinds, each is an overload of `Linear`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from noble_fx.captures.torch_export import quiet
from noble_fx.onnx_export.operators import REWRITTEN
from noble_fx.ops import inference
from noble_fx.schema import LINEAR
from noble_fx.torch_versions import onnx_library_read_once

DOMAIN, NAME = "noble_fx", "Linear"
_KIND = "kind"  # the attribute by which a node says of which kind it is, until its body stands beside it


@dataclass(frozen=True)
class Kind:
    """What one body fits: σ, the dimensions of x, which biases there are, and the dtypes and shapes of σ's tensors."""

    act_key: str
    dimensions: int
    bias: bool
    down_bias: bool
    rank: int
    dtype: torch.dtype
    act: tuple[tuple[torch.dtype, tuple[int, ...]], ...]

    @property
    def overload(self) -> str:
        """A readable name for the body: cosnet_3d, cosnet_2d_no_bias, …"""
        biases = "" if self.bias else "_no_bias"
        return f"{self.act_key}_r{self.rank}_{self.dimensions}d{biases}{'' if self.down_bias else '_no_down_bias'}"


def as_nodes(program: ExportedProgram) -> tuple[ExportedProgram, list[Kind]]:
    """The program with each `noble_fx::linear` as one ONNX node of that domain, and the kinds of site among them."""
    kinds: dict[Kind, int] = {}

    def node(x, weight, bias, down, down_bias, up, act, act_key):
        act_of = tuple((t.dtype, tuple(t.shape)) for t in act)
        kind = Kind(act_key, x.ndim, bias is not None, down_bias is not None, down.shape[0], x.dtype, act_of)
        number = kinds.setdefault(kind, len(kinds))
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NAME}",
            (x, weight, bias, down, down_bias, up, *act),
            {_KIND: number},
            dtype=x.dtype,
            shape=(*x.shape[:-1], up.shape[0]),
            version=1,
        )

    with quiet():
        program = program.run_decompositions({**REWRITTEN, LINEAR: node})
    return program, list(kinds)


def add_bodies(model: Any, kinds: Sequence[Kind]) -> None:
    """Put a function for each kind into the ONNX model, and tell every node which one is its own."""
    opset = model.opset_imports[""]
    names: Counter[str] = Counter()
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type == NAME:
            kind = kinds[node.attributes.pop(_KIND).as_int()]
            node.overload = kind.overload if len(kinds) > 1 else ""
            site = node.inputs[3].name.removesuffix(".noble.down")
            names[site] += 1  # a layer that is called twice is two nodes, and names are unique in a file
            node.name = site if names[site] == 1 else f"{site}_{names[site]}"
    for kind in kinds:
        function = _function(kind, opset, kind.overload if len(kinds) > 1 else "")
        model.functions[function.identifier()] = function


class _Body(nn.Module):
    """The decomposition, its tensors all inputs."""

    def __init__(self, act_key: str) -> None:
        super().__init__()
        self.act_key = act_key

    def forward(self, tensors: dict[str, Tensor | None], act: list[Tensor]) -> Tensor:
        return inference.linear(**tensors, act=act, act_key=self.act_key)  # type: ignore[arg-type]


def _function(kind: Kind, opset: int, overload: str) -> Any:
    """The ONNX function of one kind, its inputs x, weight, bias, down, down_bias, up, act_0, …"""
    import onnx_ir as ir

    tensors, act = _examples(kind)
    graph = _exported_body(kind, tensors, act, opset)
    tensors_of_graph = iter(list(graph.inputs))
    inputs = []
    for name in [*tensors, *(f"act_{i}" for i in range(len(act)))]:
        absent = name in tensors and tensors[name] is None  # a bias that is not there is an input that nothing reads
        value = ir.Value(name=name) if absent else next(tensors_of_graph)
        value.name = name
        inputs.append(value)
    assert next(tensors_of_graph, None) is None
    nodes = [*_constants(graph), *graph]
    outputs = list(graph.outputs)
    graph.remove(list(graph))
    graph.inputs.clear()
    graph.outputs.clear()
    body = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": opset}, name=NAME)
    return ir.Function(DOMAIN, NAME, overload, graph=body, attributes=[])


def _exported_body(kind: Kind, tensors: dict[str, Tensor | None], act: list[Tensor], opset: int) -> Any:
    """The decomposition as an ONNX graph with free sizes."""
    shapes = {name: None if t is None else dict.fromkeys(_free(name, t), Dim.AUTO) for name, t in tensors.items()}
    with quiet(), onnx_library_read_once(), torch.no_grad():
        program = torch.export.export(
            _Body(kind.act_key), (tensors, act), dynamic_shapes=(shapes, [None] * len(act)), strict=False
        ).run_decompositions({})
        exported: Any = torch.onnx.export(program, opset_version=opset, dynamo=True, verbose=False)
    return exported.model.graph


def _examples(kind: Kind) -> tuple[dict[str, Tensor | None], list[Tensor]]:
    """Tensors of that kind with sizes that are all different, so that no two of them are taken for one."""
    r = kind.rank
    inner, outer = r + 3, r + 5
    act = [torch.zeros(shape, dtype=dtype) for dtype, shape in kind.act]
    taken = {n for t in act for n in t.shape} | {r, inner, outer}
    free = (n for n in range(2, 99) if n not in taken)
    x = torch.zeros(*[next(free) for _ in range(kind.dimensions - 1)], inner, dtype=kind.dtype)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=kind.dtype)

    return {
        "x": x,
        "weight": zeros(outer, inner),
        "bias": zeros(outer) if kind.bias else None,
        "down": zeros(r, inner),
        "down_bias": zeros(r) if kind.down_bias else None,
        "up": zeros(outer, r),
    }, act


def _free(name: str, tensor: Tensor) -> list[int]:
    """The axes whose sizes may differ from site to site: all but those of the rank."""
    fixed = {"down": (0,), "up": (1,), "down_bias": (0,)}.get(name, ())
    return [axis for axis in range(tensor.ndim) if axis not in fixed]


def _constants(graph: Any) -> list[Any]:
    """The graph's initializers as Constant nodes: a function has none."""
    import onnx_ir as ir

    nodes = []
    for value in list(graph.initializers.values()):
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)], name=f"constant_{value.name}")
        node.outputs[0].name = value.name
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        nodes.append(node)
    graph.initializers.clear()
    return nodes

"""How far each output of a file may be from PyTorch: by the coarsest dtype that anything on its way has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument

# The largest difference allowed, from the finest dtype to the coarsest.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_RELATIVE = (torch.float16, torch.bfloat16)  # three digits or fewer: seen against the largest value
_COARSENESS = {dtype: at for at, dtype in enumerate(TOLERANCE)}


@dataclass(frozen=True)
class Tolerance:
    """The largest difference allowed at an output, and whether it grows with values over 1."""

    value: float
    relative: bool

    def at(self, scale: float) -> float:
        """The largest difference allowed where the largest value is `scale`."""
        return self.value * max(1.0, scale) if self.relative else self.value


def tolerance_of(dtypes: set[torch.dtype]) -> Tolerance:
    """For a result that is computed in these dtypes; integers alone are exact."""
    coarsest = max((d for d in dtypes if d in _COARSENESS), key=_COARSENESS.__getitem__, default=None)
    return Tolerance(0.0, False) if coarsest is None else Tolerance(TOLERANCE[coarsest], coarsest in _RELATIVE)


def tolerances(program: ExportedProgram) -> list[Tolerance]:
    """One for each tensor that a functional program returns to its caller."""
    *_, output = program.graph.nodes
    pairs = zip(program.graph_signature.output_specs, output.args[0], strict=True)
    kept = (OutputKind.USER_OUTPUT,)
    nodes = [node for spec, node in pairs if spec.kind in kept and isinstance(spec.arg, TensorArgument)]
    return [tolerance_of(_dtypes_before(node)) for node in nodes]


def dtypes_in(program: ExportedProgram) -> set[torch.dtype]:
    """The dtypes of all that a program computes."""
    return {dtype for node in program.graph.nodes for dtype in _dtypes(node)}


def _dtypes_before(node: fx.Node) -> set[torch.dtype]:
    """The dtypes of a node and of all that it is computed from."""
    seen, waiting, dtypes = {node}, [node], set()
    while waiting:
        at = waiting.pop()
        dtypes |= _dtypes(at)
        waiting += [before for before in at.all_input_nodes if before not in seen]
        seen.update(at.all_input_nodes)
    return dtypes


def _dtypes(node: fx.Node) -> set[torch.dtype]:
    """The dtypes of a node's values; those of a whole graph where it names one, as a branch of `torch.cond` does."""
    module: Any = node.graph.owning_module
    inner = getattr(module, str(node.target), None) if node.op == "get_attr" else None
    if isinstance(inner, fx.GraphModule):
        return {dtype for part in inner.graph.nodes for dtype in _dtypes(part)}
    value = node.meta.get("val")
    leaves = value if isinstance(value, list | tuple) else [value]
    return {leaf.dtype.to_real() for leaf in leaves if isinstance(leaf, Tensor)}

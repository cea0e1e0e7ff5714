"""The ONNX model as a file: every weight once, nothing of this machine, one file or two.

Weights over 2 GB do not fit into one protobuf and go to `<file>.data` beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from noble_fx.captures.torch_export import quiet
from noble_fx.errors import ExportError

SINGLE_FILE_LIMIT = 2**31 - 2**20  # bytes; a protobuf ends at 2 GiB, and a graph of nodes wants its share


def values(graph: Any) -> list[Any]:
    """The inputs of a graph, what its nodes make, and its outputs, each once."""
    produced = [value for node in graph for value in node.outputs]
    return list({id(v): v for v in [*graph.inputs, *produced, *graph.outputs]}.values())


def tidy(model: Any) -> None:
    """Store equal weights once, whatever their names, and drop the exporter's notes (stack traces of this machine)."""
    from onnx_ir.passes import Sequential, common

    _make_contiguous(model)
    with quiet():
        Sequential(common.DeduplicateHashedInitializersPass(), common.ClearMetadataAndDocStringPass())(model)
    _clear_values(model)


def _make_contiguous(model: Any) -> None:
    """The pass hashes memory as it lies, and fails on a weight that lies transposed or in channels last."""
    import numpy
    import onnx_ir as ir

    for graph in model.graphs():
        for name, value in graph.initializers.items():
            array = None if value.const_value is None else value.const_value.numpy()
            if array is not None and not array.flags.c_contiguous:
                value.const_value = ir.Tensor(numpy.ascontiguousarray(array), dtype=value.const_value.dtype, name=name)


def _clear_values(model: Any) -> None:
    """The pass clears nodes and graphs; what the exporter notes on values is a quarter of a small file."""
    for outer in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in (outer, *outer.subgraphs()):
            for value in (*values(graph), *graph.initializers.values()):
                value.metadata_props.clear()


def write(model: Any, path: Path) -> None:
    """Write the model to `path`, its weights to `<path>.data` where one file cannot hold them."""
    import onnx_ir as ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights <= SINGLE_FILE_LIMIT:
        ir.save(model, path)
    else:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)


def check(path: Path, opset: int) -> None:
    """The checker of ONNX, shape inference with it; raises `ExportError`, with the remedy for a missing type."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        text = " ".join(str(error).split())
        missing = re.search(r"op_type:\s*(\w+).*?unsupported type: tensor\((\w+)\)", text)
        if missing:
            operator, dtype = missing.groups()
            remedy = _remedy(operator, dtype, opset)
            raise ExportError(f"{operator} takes no {dtype} in opset {opset}; {remedy}") from None
        raise ExportError(f"the exported file is not valid ONNX: {text[:300]}") from error


def _remedy(operator: str, dtype: str, opset: int) -> str:
    """The first opset whose operator takes the type, else another dtype."""
    import onnx

    for version in range(opset + 1, onnx.defs.onnx_opset_version() + 1):
        schema = onnx.defs.get_schema(operator, version)
        if any(f"tensor({dtype})" in c.allowed_type_strs for c in schema.type_constraints):
            return f"pass opset={version}, or dtype=torch.float16"
    return "pass dtype=torch.float16 or torch.float32"

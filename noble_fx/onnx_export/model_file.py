"""The ONNX model as a file: names of its sizes, what it says of itself, one file or two.

Weights over 2 GB do not fit into one protobuf and go to `<file>.data` beside it.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from noble_fx.attach.attach import named_branches
from noble_fx.captures.torch_export import user_inputs
from noble_fx.errors import ConfigError, ExportError
from noble_fx.explain import explain
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.sites.from_file import FORMAT

SINGLE_FILE_LIMIT = 2**31 - 2**20  # bytes; a protobuf ends at 2 GiB, and a graph of nodes wants its share
_AXES = ("batch", "sequence")


def describe(model: nn.Module, steps: list[Any], form: str, dtype: str) -> str:
    """What the file says of itself, as JSON: config, sites, counts, versions."""
    branches = named_branches(model)
    config: dict[str, Any] = {}
    if branches:
        try:
            config = next(iter(branches.values())).config.to_dict()
        except ConfigError:  # a callable cannot be written; the file works without it
            config = {"act": next(iter(branches.values())).label}
    account = explain(model)
    done = [step.rule for step in steps if not step.skipped and step.rule != remove_dead.name]
    return json.dumps(
        {
            "format": FORMAT,
            "model": account.model,
            "config": config,
            "settings": {**account.settings, "form": form, "dtype": dtype},
            "sites": [site.to_dict() for site in account.sites],
            "base_params": account.base_params,
            "branch_params": account.branch_params,
            "passes": {rule: done.count(rule) for rule in dict.fromkeys(done)},
            "versions": {name: _version(name) for name in ("noble-fx", "torch", "onnx", "onnxscript")},
        }
    )


def _version(package: str) -> str:
    if package == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def name_sizes(model: Any, program: ExportedProgram, given: dict[str, dict[int, str]]) -> None:
    """Call the dynamic sizes as the caller did, else batch and sequence, where the exporter has s77 and s27."""
    import onnx_ir as ir

    tensors = [value for value in user_inputs(program) if isinstance(value, Tensor)]
    names: dict[str, str] = {}
    for value, tensor in zip(model.graph.inputs, tensors, strict=False):
        for axis, (dim, size) in enumerate(zip(value.shape or (), tensor.shape, strict=False)):
            symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
            if not isinstance(size, int) and symbol and re.fullmatch(r"s\d+", symbol) and symbol not in names:
                name = given.get(value.name, {}).get(axis) or (_AXES[axis] if axis < len(_AXES) else f"size_{axis}")
                names[symbol] = name if name not in names.values() else f"{value.name}_{name}"
    if not names:
        return
    symbols = re.compile(r"\b(" + "|".join(names) + r")\b")
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape(
                symbols.sub(lambda m: names[m[0]], dim.value) if isinstance(dim, ir.SymbolicDim) and dim.value else dim
                for dim in value.shape
            )


def name_ends(model: Any, program: ExportedProgram) -> None:
    """Call inputs and outputs as the model does: `logits`, else output or output_0, where the exporter has addmm_7."""
    signature = program.graph_signature
    inputs = [s.arg.name for s in signature.input_specs if s.kind is InputKind.USER_INPUT and _is_tensor(s)]
    outputs = [spec for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    named = [name for name, spec in zip(_output_names(program), outputs, strict=True) if _is_tensor(spec)]
    values = {value.name: value for value in [*_values(model.graph), *model.graph.initializers.values()]}
    for value, name in zip(model.graph.outputs, named, strict=True):
        if value.producer() is None:  # a weight that is returned, under its own name
            continue
        while name in inputs or values.get(name, value) is not value:
            name += "_out"
        values[name] = value
        value.name = name
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name  # one that is returned as it is has become x_orig


def _is_tensor(spec: InputSpec | OutputSpec) -> bool:
    return isinstance(spec.arg, TensorArgument)  # a number or None has no place in a file


def _output_names(program: ExportedProgram) -> list[str]:
    """One name for each leaf of what the model returns: its keys in dictionaries, its place in tuples."""
    spec = program.call_spec.out_spec
    found: dict[int, str] = {}

    def walk(tree: Any, *path: str) -> None:
        if isinstance(tree, int):
            found[tree] = "_".join(path) or "output"
        elif isinstance(tree, Mapping):
            for key, part in tree.items():
                walk(part, *path, str(key))
        else:
            for place, part in enumerate(tree):
                walk(part, *(path or ("output",)), str(place))

    walk(pytree.tree_unflatten(range(spec.num_leaves), spec))
    return [found[leaf] for leaf in range(spec.num_leaves)]


def _values(graph: Any) -> list[Any]:
    produced = [value for node in graph for value in node.outputs]
    return list({id(v): v for v in [*graph.inputs, *produced, *graph.outputs]}.values())


def strip(model: Any) -> None:
    """Drop the exporter's notes on every node and value (stack traces of this machine), a third of a small file."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*_values(graph), *graph.initializers.values()):
            value.metadata_props.clear()
    for function in model.functions.values():
        function.metadata_props.clear()


def share_initializers(model: Any) -> int:
    """Store every weight once: initializers over the same memory become one; returns how many were dropped."""
    import onnx_ir as ir

    kept: dict[tuple[Any, ...], Any] = {}
    dropped = 0
    for name, value in list(model.graph.initializers.items()):
        raw = getattr(value.const_value, "raw", None)
        if not isinstance(raw, Tensor) or not raw.numel():
            continue
        key = (raw.data_ptr(), raw.dtype, tuple(raw.shape), raw.stride())
        if key in kept and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, kept[key])
            del model.graph.initializers[name]
            dropped += 1
        else:
            kept.setdefault(key, value)
    return dropped


def write(model: Any, path: Path) -> None:
    """Write the model to `path`, its weights to `<path>.data` where one file cannot hold them."""
    import onnx_ir as ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights <= SINGLE_FILE_LIMIT:
        ir.save(model, path)
    else:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)


def check(path: Path, dtype: torch.dtype, opset: int) -> None:
    """The checker of ONNX, shape inference with it; raises `ExportError`, with the remedy for a missing type."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        text = " ".join(str(error).split())
        found = re.search(r"op_type:\s*(\w+).*?unsupported type: tensor\((\w+)\)", text)
        if found:
            raise ExportError(
                f"{found[1]} takes no {found[2]} in opset {opset}{_newer(found[1], found[2], opset)}"
            ) from None
        raise ExportError(f"the exported file is not valid ONNX: {text[:300]}") from error


def _newer(operator: str, dtype: str, opset: int) -> str:
    """The remedy: the first opset that has the type, else another dtype."""
    import onnx

    for version in range(opset + 1, onnx.defs.onnx_opset_version() + 1):
        schema = onnx.defs.get_schema(operator, version)
        if any(f"tensor({dtype})" in c.allowed_type_strs for c in schema.type_constraints):
            return f"; pass opset={version}, or dtype=torch.float16"
    return "; pass dtype=torch.float16 or torch.float32"


def shape_text(tensors: Any) -> str:
    """The sizes of a call's tensors: [1, 5] × [1, 5]."""
    return " × ".join(str(list(t.shape)) for t in pytree.tree_leaves(tensors) if isinstance(t, Tensor))

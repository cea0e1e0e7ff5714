"""The names of an exported file's inputs, outputs and dynamic sizes: those that the model's author knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from noble_fx.captures.torch_export import user_inputs
from noble_fx.onnx_export.model_file import values

_AXES = ("batch", "sequence")


def name_ends(model: Any, program: ExportedProgram) -> None:
    """Call inputs and outputs as the model does: `logits`, else output or output_0, where the exporter has addmm_7."""
    signature = program.graph_signature
    inputs = [s.arg.name for s in signature.input_specs if s.kind is InputKind.USER_INPUT and _is_tensor(s)]
    outputs = [spec for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    names = [name for name, spec in zip(_output_names(program), outputs, strict=True) if _is_tensor(spec)]
    taken = {value.name: value for value in [*values(model.graph), *model.graph.initializers.values()]}
    for value, name in zip(model.graph.outputs, names, strict=True):
        if value.producer() is None:  # a weight that is returned, under its own name
            continue
        while name in inputs or taken.get(name, value) is not value:
            name += "_out"
        taken[name] = value
        value.name = name
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name  # one that is returned as it is has become x_orig


def _is_tensor(spec: InputSpec | OutputSpec) -> bool:
    return isinstance(spec.arg, TensorArgument)  # a number or None has no place in a file


def _output_names(program: ExportedProgram) -> list[str]:
    """One name for each leaf of what the model returns: its keys in dictionaries, its place in tuples."""
    spec = program.call_spec.out_spec
    names: dict[int, str] = {}

    def walk(tree: Any, *path: str) -> None:
        if isinstance(tree, int):
            names[tree] = "_".join(path) or "output"
        elif isinstance(tree, Mapping):
            for key, part in tree.items():
                walk(part, *path, str(key))
        else:
            for place, part in enumerate(tree):
                walk(part, *(path or ("output",)), str(place))

    walk(pytree.tree_unflatten(range(spec.num_leaves), spec))
    return [names[leaf] for leaf in range(spec.num_leaves)]


def name_sizes(model: Any, program: ExportedProgram, callers_names: dict[str, dict[int, str]]) -> None:
    """Call the dynamic sizes as the caller did, else batch and sequence, where the exporter has s77 and s27."""
    import onnx_ir as ir

    names = _size_names(model, program, callers_names)
    if not names:
        return
    symbols = re.compile(r"\b(" + "|".join(names) + r")\b")
    for value in values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape(
                symbols.sub(lambda m: names[m[0]], dim.value) if isinstance(dim, ir.SymbolicDim) and dim.value else dim
                for dim in value.shape
            )


def _size_names(model: Any, program: ExportedProgram, callers_names: dict[str, dict[int, str]]) -> dict[str, str]:
    """A name for every symbol that is a size of an input by itself."""
    import onnx_ir as ir

    tensors = [value for value in user_inputs(program) if isinstance(value, Tensor)]
    names: dict[str, str] = {}
    for value, tensor in zip(model.graph.inputs, tensors, strict=False):
        for axis, (dim, size) in enumerate(zip(value.shape or (), tensor.shape, strict=False)):
            symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
            if not isinstance(size, int) and symbol and re.fullmatch(r"s\d+", symbol) and symbol not in names:
                own = callers_names.get(value.name, {}).get(axis)
                name = own or (_AXES[axis] if axis < len(_AXES) else f"size_{axis}")
                names[symbol] = name if name not in names.values() else f"{value.name}_{name}"
    return names

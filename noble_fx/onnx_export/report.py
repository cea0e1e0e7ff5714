"""What an export wrote, as data and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from noble_fx.onnx_export.account import rewrites
from noble_fx.onnx_export.verify import Verification
from noble_fx.passes.history import Step
from noble_fx.passes.inference.fold_branch import fold_branch
from noble_fx.passes.inference.join_down import join_down
from noble_fx.passes.inference.join_up import join_up
from noble_fx.tables import as_text, plain, table

if TYPE_CHECKING:
    from rich.table import Table

# The passes whose refusals are told: a site that they leave alone is slower than it might be.
_TOLD = (fold_branch.name, join_up.name, join_down.name)


@dataclass(frozen=True)
class ExportReport:
    """What was written and how close it comes to PyTorch; `str()` is a table."""

    path: Path
    opset: int
    nodes: int
    size: int  # bytes, external data included
    inputs: dict[str, str]  # name -> dtype and shape, dynamic sizes by name
    outputs: dict[str, str]
    largest_error: float | None  # None when it was not verified
    tolerance: float | None
    checked: tuple[str, ...]  # shapes that were compared
    verified_by: str = "ONNX Runtime"  # what ran the file, and why another than ONNX Runtime did
    joined: str = ""  # which matrices of a site became one, and why these
    passes: dict[str, int] = field(default_factory=dict)  # rewrites by pass
    kept: dict[str, int] = field(default_factory=dict)  # "pass: why not" -> how many sites
    notes: tuple[str, ...] = ()  # where a file is less than the model: what it does not keep, what is fixed in it

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Table:
        shown = table(show_header=False)
        rows = {
            "file": f"{self.path} ({self.size / 1e6:.2f} MB)",
            "opset": str(self.opset),
            "nodes": str(self.nodes),
            "inputs": ", ".join(f"{k} {v}" for k, v in self.inputs.items()),
            "outputs": ", ".join(f"{k} {v}" for k, v in self.outputs.items()),
            "joined": self.joined,
            "passes": ", ".join(f"{name} × {count}" for name, count in self.passes.items()) or "none",
            **(
                {"left as it was": "; ".join(f"{count} × {why}" for why, count in self.kept.items())}
                if self.kept
                else {}
            ),
            **({"note": "; ".join(self.notes)} if self.notes else {}),
            "largest error": self._error(),
            "compared at": "; ".join(self.checked) or "–",
            "compared by": self.verified_by if self.checked else "–",
        }
        for name, value in rows.items():
            shown.add_row(name, plain(value))
        return shown

    def _error(self) -> str:
        if self.largest_error is None or self.tolerance is None:
            return "not verified"
        within = self.largest_error <= self.tolerance
        return f"{self.largest_error:.2e} ({'≤' if within else 'NOT ≤'} {self.tolerance:.3g})"


def report_of(
    onnx_model: Any,
    path: Path,
    size: int,
    verification: Verification | None,
    steps: Sequence[Step],
    joined: str,
    notes: tuple[str, ...] = (),
) -> ExportReport:
    """The report of an onnx_ir model that lies at `path`, `size` bytes; `verification` is None where nobody looked."""
    nodes = [*onnx_model.graph, *(node for function in onnx_model.functions.values() for node in function)]
    refused = Counter(f"{step.rule}: {step.skipped}" for step in steps if step.rule in _TOLD and step.skipped)
    return ExportReport(
        path=path,
        opset=onnx_model.opset_imports[""],
        nodes=len(nodes),
        size=size,
        inputs={value.name: f"{value.dtype} {value.shape}" for value in onnx_model.graph.inputs},
        outputs={value.name: f"{value.dtype} {value.shape}" for value in onnx_model.graph.outputs},
        largest_error=verification.error if verification else None,
        tolerance=verification.tolerance if verification else None,
        checked=verification.checked if verification else (),
        verified_by=verification.by if verification else "",
        joined=joined,
        passes=rewrites(steps),
        kept=dict(refused),
        notes=notes,
    )


def notes(program: ExportedProgram, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """What the model does and a file does not: change tensors of its own, take other values than tensors."""
    signature = program.graph_signature
    changed = sorted({*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()})
    found = [f"every call of the model changes {name!r}, and every run of the file starts from it" for name in changed]
    for name, value in arguments.items():
        for path, leaf in pytree.tree_leaves_with_path(value):
            if leaf is not None and not isinstance(leaf, Tensor):
                found.append(f"{name}{pytree.keystr(path)} is fixed: {leaf!r:.60}")
    return tuple(found)

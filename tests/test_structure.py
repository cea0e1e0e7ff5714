"""The shape of the code base: which way imports run, and how large a file may get."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "noble_fx"

# A module may import from its own room and from those above it in this list, never from below.
ROOMS = [
    {"errors", "files", "schema", "forward_signature"},
    {"config"},
    {"activations"},
    {"branch"},
    {"conv1d", "convolution", "attention", "holders", "folded"},
    {"program", "layers", "roles", "weights"},
    {"ranks", "dataflow", "attach", "graph_pickle", "onnx_file"},
    {"select", "capture", "exported_model"},
    {"capture_export", "example_inputs"},
    {"passes"},
    {"codegen"},
    {"draw"},
    {"runtime"},
    {"transform"},
    {"training", "checkpoint", "explain", "fold", "kernels"},
    {"onnx_export"},
    {"export"},
    {"__init__"},
    {"demo", "cli"},
]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "examples" not in path.parts)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards_only(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "noble_fx":
            below = (node.module or "").split(".")[1:]
            names = [below[0]] if below else [alias.name if alias.name in LEVEL else "__init__" for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == "noble_fx"]
            names = [parts[1] if len(parts) > 1 else "__init__" for parts in found]
        for name in names:
            assert LEVEL[name] <= LEVEL[room(path)], f"{path.name} imports {name}, which lies below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350

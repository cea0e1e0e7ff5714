"""The shape of the code base: which way imports run, that none run in circles, and how large a file may get."""

import ast
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).parents[1] / "noble_fx"

# A room (a folder, or a file of the top level) may import from itself and from rooms above it, never from below.
ROOMS = [
    {
        "distributed",
        "errors",
        "exporting",
        "files",
        "imports",
        "interleaved",
        "own_code",
        "presets",
        "random_states",
        "schema",
        "tables",
        "torch_state",
        "torch_versions",
        "tracing_lock",
        "wrappers",
    },
    {"config"},
    {"branches"},
    {"bases"},
    {"layers"},
    {"sites"},
    {"codegen"},
    {"runtime"},
    {"ops"},
    {"attach"},
    {"passes"},
    {"captures"},
    {"inspect", "diagrams"},
    {"adapting", "stacking", "transform"},
    {"compressing"},
    {"checkpoints"},
    {"explaining"},
    {"training", "checkpoint", "compress", "fold", "merge", "peft_files", "pretrained"},
    {"report"},
    {"explain"},
    {"onnx_export"},
    {"__init__"},
    {"bench", "demo", "doctor", "model_spec"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The project's modules that a file imports, wherever in it: in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import, which hides where it leads"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name in MODULES}


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards_only(path):
    own = room(module_of(path))
    for module in imports(path):
        assert LEVEL[room(module)] <= LEVEL[own], f"{path.name} imports {module}, which lies below it"


def test_imports_do_not_run_in_circles():
    graph = nx.DiGraph((module_of(path), module) for path in FILES for module in imports(path))
    # `from noble_fx.ops import linear` imports the package as well: a file and its own folder are no circle.
    packages = {module_of(path) for path in FILES if path.name == "__init__.py"}
    graph.remove_nodes_from(packages)
    assert list(nx.simple_cycles(graph)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_has_a_test_of_its_name(path):
    if path.name != "__init__.py":
        place = Path(__file__).parent / path.relative_to(PACKAGE).parent
        assert (place / f"test_{path.name}").is_file()

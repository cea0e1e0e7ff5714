"""The text of a file: indents, paragraphs, long statements as ruff would lay them out."""

import ast
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from noble_fx.codegen import source as text
from noble_fx.codegen.kernel import Argument
from noble_fx.codegen.source import Source


def written(*lines: str) -> str:
    source = Source()
    source.head(["title", "", "    a fact", "", "the end"])
    with source.function("kernel", [Argument("x_ptr", "*fp32"), Argument("rows", "i32")]):
        for line in lines:
            source.line(line)
    return str(source)


def test_a_file_has_a_docstring_imports_and_a_function():
    tree = ast.parse(written("a = 1"))
    assert ast.get_docstring(tree).splitlines() == ["title", "", "    a fact", "", "the end"]
    (kernel,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert [argument.arg for argument in kernel.args.args] == ["x_ptr", "rows"]


@pytest.mark.parametrize("wave", ["cos", "sin"])
def test_a_wave_of_any_angle_is_a_wave(wave):
    """The text itself, in PyTorch's words and float32."""
    names = {"floor": torch.floor, "where": torch.where, "constexpr": float, "PropagateNan": SimpleNamespace(ALL=True)}
    for name in ("maximum", "minimum"):
        names[name] = lambda a, b, propagate_nan, name=name: getattr(torch, name)(a, torch.tensor(b))
    program = {"tl": SimpleNamespace(**names), "triton": SimpleNamespace(jit=lambda function: function)}
    exec(text._QUARTERS + text._EXACT.format(wave=wave, **text._WAVES[wave]), program)
    function = program[f"exact_{wave}"]
    small = torch.linspace(-10_000, 10_000, 40_001)
    torch.testing.assert_close(function(small), getattr(torch, wave)(small.double()).float(), rtol=0, atol=3e-7)
    large = torch.tensor([1e5, -1e6, 3e7, 1e9, -1e15, 3e38])
    assert (function(large).abs() <= 1).all()
    assert function(torch.tensor([float("inf"), -float("inf"), float("nan")])).isnan().all()


def test_a_paragraph_without_lines_leaves_nothing():
    source = Source()
    with source.block("if a"):
        source.paragraph("first")
        source.line("b = 1")
        source.paragraph("nothing follows")
        source.paragraph("second")
        source.line("c = 2")
    assert str(source) == "if a:\n    # first\n    b = 1\n\n    # second\n    c = 2\n"


def test_a_line_that_is_needed_once():
    source = Source()
    for _ in range(2):
        source.once("channel = tl.arange(0, 16)")
    assert str(source).count("channel") == 1


@pytest.mark.parametrize(
    "line",
    [
        f"value = tl.load(pointer + {'long_name_of_an_offset + ' * 4}1).to(tl.float32)",
        f"tl.store({'long_pointer + ' * 7}1, value.to(pointer.dtype.element_ty), mask=inside)",
        f"value = tl.where({'a_condition & ' * 7}live, some_value, 0.0)",
    ],
)
def test_long_lines_are_laid_out_as_ruff_does(line):
    text = written(line)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length=120", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == text
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(done.stdout))


def test_waves_and_the_device_library_come_with_what_uses_them():
    assert "libdevice" not in written("a = 1")
    assert "from triton.language.extra import libdevice\n" in written("a = libdevice.tanh(b)")
    fast = written("a = fast_cos(b)")
    assert "def fast_cos(" in fast
    assert "def fast_sin(" not in fast
    assert "import libdevice" in fast
    exact = written("a = exact_sin(b)")
    assert "def exact_sin(" in exact
    assert "libdevice" not in exact

"""What is imported when; in a process of its own where that is about this package."""

import importlib
import subprocess
import sys

import pytest

from noble_fx.imports import after_import
from noble_fx.torch_versions import RELEASE

LATER = ("rich", "onnx", "transformers")
if RELEASE > (2, 11):  # where something has to be traced at once (torch_versions.py)
    LATER += ("triton", "sympy", "torch._inductor", "torch._dynamo", "torch.distributed.tensor")
# What is not needed yet is not imported; torch's counter counts fused sites though it is imported after them.
IN_ANOTHER_PROCESS = f"""
import sys, torch
before = set(sys.modules)
import noble_fx
print([name for name in {LATER} if name in set(sys.modules) - before])
model = noble_fx.transform(torch.nn.Linear(8, 8), rank=2, act="gelu", select="all")
from torch.utils.flop_counter import FlopCounterMode
branch = model.noble
with FlopCounterMode(display=False) as counter:
    torch.ops.noble_fx.linear(
        torch.randn(3, 8), model.weight, model.bias, branch.down, None, branch.up, [], branch.key
    )
print(counter.get_total_flops())
"""


def test_what_is_not_needed_yet_is_not_imported():
    command = [sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["[]", str(2 * 3 * (8 * 8 + 8 * 2 + 2 * 8))], ran.stderr[-2000:]


@pytest.fixture
def said(tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text("value = 1\n")
    (tmp_path / "broken_module.py").write_text("raise ValueError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield []
    for name in ("late_module", "broken_module"):
        sys.modules.pop(name, None)


def test_what_follows_an_import_follows_it_once(said):
    finders = list(sys.meta_path)
    after_import("late_module", lambda: said.append(sys.modules["late_module"].value))
    assert said == []
    late = importlib.import_module("late_module")
    importlib.reload(late)
    importlib.import_module("late_module")
    assert said == [1]
    assert type(late.__loader__).__name__ == type(late.__spec__.loader).__name__ == "SourceFileLoader"
    assert sys.meta_path == finders


def test_it_follows_at_once_what_has_been_imported(said):
    importlib.import_module("late_module")
    after_import("late_module", lambda: said.append("then"))
    assert said == ["then"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("broken_module", ValueError, "broken"), ("missing_module", ModuleNotFoundError, "No module named 'missing_mod")],
)
def test_a_module_that_fails_or_is_not_there_fails_as_ever(name, error, message, said):
    after_import(name, lambda: said.append("then"))
    with pytest.raises(error, match=message):
        importlib.import_module(name)
    assert said == []

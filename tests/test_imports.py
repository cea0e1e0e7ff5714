"""What is imported when, asked in processes of their own."""

import subprocess
import sys

import pytest

LATER = (
    "triton",
    "sympy",
    "rich",
    "torch._inductor",
    "torch._dynamo",
    "torch.distributed.tensor",
    "transformers",
    "onnx",
)


def answer(code: str) -> str:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    return ran.stdout.strip() or ran.stderr[-2000:]


def test_what_is_not_needed_yet_is_not_imported():
    code = (
        "import torch, sys; before = set(sys.modules); import noble_fx; "
        f"print([name for name in {LATER} if name in set(sys.modules) - before])"
    )
    assert answer(code) == "[]"


MODULE = "import sys, importlib; sys.path.insert(0, {folder!r}); from noble_fx.imports import after_import; "


@pytest.fixture
def start(tmp_path):
    (tmp_path / "late.py").write_text("value = 1\n")
    (tmp_path / "broken.py").write_text("raise ValueError('broken')\n")
    return MODULE.format(folder=str(tmp_path))


def test_what_follows_an_import_follows_it_once(start):
    code = start + (
        "after_import('late', lambda: print('then', sys.modules['late'].value)); print('not yet'); "
        "import late; importlib.reload(late); import late; print(type(late.__loader__).__name__)"
    )
    assert answer(code).splitlines() == ["not yet", "then 1", "SourceFileLoader"]


def test_it_follows_at_once_what_has_been_imported(start):
    assert answer(start + "import late; after_import('late', lambda: print('then'))") == "then"


def test_a_module_that_fails_or_is_not_there_fails_as_ever(start):
    code = start + "after_import('{name}', lambda: print('then'))\ntry: import {name}\nexcept Exception as e: print(e)"
    assert answer(code.format(name="broken")) == "broken"
    assert answer(code.format(name="missing")) == "No module named 'missing'"


def test_torchs_flop_counter_counts_fused_sites_whenever_it_is_imported():
    code = (
        "import torch, noble_fx; model = noble_fx.transform(torch.nn.Linear(8, 8), rank=2, act='gelu', select='all'); "
        "from torch.utils.flop_counter import FlopCounterMode; counter = FlopCounterMode(display=False)\n"
        "with counter: torch.ops.noble_fx.linear(torch.randn(3, 8), model.weight, model.bias, model.noble.down, None, "
        "model.noble.up, [], model.noble.key)\nprint(counter.get_total_flops())"
    )
    assert answer(code) == str(2 * 3 * (8 * 8 + 8 * 2 + 2 * 8))

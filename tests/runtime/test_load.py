"""From text to a function that Triton launches."""

from dataclasses import replace

import pytest
import torch

from noble_fx.codegen.cache import write_kernel
from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import Layer, make_plan
from noble_fx.errors import KernelError
from noble_fx.runtime.load import load_kernel

triton = pytest.importorskip("triton")

TEXT = '''"""out = factor · x."""

import triton
import triton.language as tl


@triton.jit
def scaled(x):
    return x * 2


@triton.jit
def scale(x_ptr, out_ptr, rows):
    index = tl.program_id(0) * 16 + tl.arange(0, 16)
    x = tl.load(x_ptr + index, mask=index < rows)
    tl.store(out_ptr + index, scaled(x), mask=index < rows)
'''
PLAN = make_plan(Layer(32, (48,), 8, "cosnet-0123", torch.float32, torch.float32), "interpreter")
KERNEL = Kernel("scale", TEXT, (), row_tile=16, blocks=1, warps=4, stages=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    load_kernel.cache_clear()
    yield
    load_kernel.cache_clear()


def run(kernel: Kernel) -> torch.Tensor:
    x = torch.arange(20.0, device="cuda" if torch.cuda.is_available() else "cpu")
    out = torch.zeros_like(x)
    load_kernel(PLAN, kernel)[(kernel.programs(20),)](x, out, 20)
    return out.cpu()


def test_a_kernel_that_calls_another_function_runs():
    torch.testing.assert_close(run(KERNEL), 2 * torch.arange(20.0))


def test_it_is_loaded_once():
    assert load_kernel(PLAN, KERNEL) is load_kernel(PLAN, KERNEL)


def test_what_is_run_is_the_text_in_hand_not_the_file():
    path = write_kernel(PLAN, KERNEL)
    path.write_text(TEXT.replace("x * 2", "x * 666"))
    torch.testing.assert_close(run(KERNEL), 2 * torch.arange(20.0))
    load_kernel.cache_clear()
    function = load_kernel(PLAN, KERNEL)
    path.write_text(TEXT.replace("x * 2", "x * 666"))  # after it was loaded, before Triton reads its source
    x, out = torch.ones(16), torch.zeros(16)
    if torch.cuda.is_available():
        x, out = x.cuda(), out.cuda()
    function[(1,)](x, out, 16)
    torch.testing.assert_close(out.cpu(), torch.full((16,), 2.0))


def test_text_that_is_no_python_is_an_error():
    with pytest.raises(KernelError, match="cannot be loaded"):
        load_kernel(PLAN, replace(KERNEL, source="def scale(:\n"))

"""Arguments are bound by their names, and what cannot be launched says so in the project's own error."""

import ast
from dataclasses import replace

import pytest
import torch

from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.plan import Layer, make_plan
from noble_fx.errors import KernelError
from noble_fx.runtime import launch as launcher
from noble_fx.runtime.launch import launch
from noble_fx.runtime.load import load_kernel

triton = pytest.importorskip("triton")

TEXT = """import triton
import triton.language as tl


@triton.jit
def pick(x_ptr, x_stride_0, x_stride_1, out_ptr, rows, column):
    row = tl.program_id(0) * 4 + tl.arange(0, 4)
    x = tl.load(x_ptr + row * x_stride_0 + column * x_stride_1, mask=row < rows)
    tl.store(out_ptr + row, x, mask=row < rows)
"""
NAMES = ("x_ptr", "x_stride_0", "x_stride_1", "out_ptr", "rows", "column")
ARGUMENTS = tuple(Argument(name, "*fp32" if name.endswith("_ptr") else "i32") for name in NAMES)
PLAN = make_plan(Layer(32, (48,), 8, "cosnet-0123", torch.float32, torch.float32), "interpreter")
KERNEL = Kernel("pick", TEXT, ARGUMENTS, row_tile=4, blocks=1, warps=4, stages=1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    load_kernel.cache_clear()
    yield
    load_kernel.cache_clear()


def tensors(transposed: bool = False) -> dict[str, torch.Tensor]:
    x = torch.arange(30.0, device=DEVICE).view(6, 5).t() if transposed else torch.arange(30.0, device=DEVICE).view(5, 6)
    return {"x": x, "out": torch.full((5,), -1.0, device=DEVICE)}


@pytest.mark.parametrize("transposed", [False, True])
def test_pointers_strides_and_numbers_are_bound_by_name(transposed):
    bound = tensors(transposed)
    launch(PLAN, KERNEL, 5, bound, column=2)
    assert torch.equal(bound["out"], bound["x"][:, 2])


def test_rows_are_those_asked_for():
    bound = tensors()
    launch(PLAN, KERNEL, 3, bound, column=0)
    assert bound["out"].tolist() == [0.0, 6.0, 12.0, -1.0, -1.0]


def test_no_rows_no_launch():
    launch(PLAN, KERNEL, 0, {})
    assert load_kernel.cache_info().currsize == 0


@pytest.mark.parametrize(
    ("names", "numbers", "missing"),
    [(("out",), {"column": 0}, "x_ptr"), (("x", "out"), {}, "column"), (("x",), {"column": 0}, "out_ptr")],
)
def test_an_argument_that_nothing_is_bound_to_is_named(names, numbers, missing):
    bound = {name: tensor for name, tensor in tensors().items() if name in names}
    with pytest.raises(KernelError, match=rf"pick needs .*{missing}"):
        launch(PLAN, KERNEL, 5, bound, **numbers)


def test_a_stride_of_a_tensor_that_is_not_there_is_named():
    kernel = Kernel("pick", TEXT, (Argument("y_stride_0", "i32"),), row_tile=4, blocks=1, warps=4, stages=1)
    with pytest.raises(KernelError, match="y_stride_0"):
        launch(PLAN, kernel, 5, tensors())


def refusing(error: BaseException):
    class Function:
        def __getitem__(self, grid):
            def run(*arguments, **options):
                raise error

            return run

    return lambda plan, kernel: Function()


def test_what_the_gpu_cannot_hold_is_a_kernel_error(monkeypatch):
    from triton.runtime.errors import OutOfResources

    monkeypatch.setattr(launcher, "load_kernel", refusing(OutOfResources(300_000, 232_448, "shared memory")))
    with pytest.raises(KernelError, match=r"pick cannot run here: .*shared memory"):
        launch(PLAN, KERNEL, 5, tensors(), column=0)


@pytest.mark.parametrize(
    "problem",
    [
        RuntimeError("PassManager::run failed"),
        AssertionError("tl.dot wants 16 columns"),
        FileNotFoundError("no C compiler"),
        NotImplementedError("conversion of int1 to bf16"),
    ],
)
def test_whatever_else_triton_says_is_a_kernel_error(monkeypatch, problem):
    monkeypatch.setattr(launcher, "load_kernel", refusing(problem))
    with pytest.raises(KernelError, match=f"pick cannot run here: {type(problem).__name__}: {problem}") as caught:
        launch(PLAN, KERNEL, 5, tensors(), column=0)
    assert caught.value.__cause__ is problem


def test_what_the_compiler_means_is_said_and_not_the_source(monkeypatch):
    from triton.compiler.errors import CompilationError

    problem = CompilationError("x = 1\ny = x +", ast.parse("y = 2").body[0], "expected a value\nmore")
    monkeypatch.setattr(launcher, "load_kernel", refusing(problem))
    with pytest.raises(KernelError, match=r"pick cannot run here: CompilationError: expected a value$"):
        launch(PLAN, KERNEL, 5, tensors(), column=0)


def test_an_error_under_the_interpreter_is_a_kernel_error():
    text = TEXT.replace("tl.arange(0, 4)", "tl.arange(0, 3)[:, None, None] * tl.nothing")
    kernel = Kernel("pick", text, ARGUMENTS, row_tile=4, blocks=1, warps=4, stages=1)
    with pytest.raises(KernelError, match="pick cannot run here: "):
        launch(PLAN, kernel, 5, tensors(), column=0)


@pytest.mark.parametrize(
    "problem",
    [
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_an_error_of_the_device_stays_what_it_is(monkeypatch, problem):
    monkeypatch.setattr(launcher, "load_kernel", refusing(problem))
    with pytest.raises(type(problem)) as caught:
        launch(PLAN, KERNEL, 5, tensors(), column=0)
    assert caught.value is problem


REFUSED = RuntimeError("Triton Error [CUDA]: device kernel image is invalid")


@pytest.mark.parametrize(("answers", "capturing"), [(True, False), (False, False), (True, True)])
def test_a_driver_that_refuses_a_kernel_is_asked_whether_the_gpu_still_works(monkeypatch, answers, capturing):
    """It does after a binary for another GPU or too old a driver: PyTorch's operators then run. Not after a fault."""
    asked = []

    def synchronize(device):
        asked.append(device)
        if not answers:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    device = torch.device("cuda", 0)
    expected = KernelError if answers and not capturing else RuntimeError
    with pytest.raises(expected) as caught, launcher._refusals(KERNEL, device):
        raise REFUSED
    assert (caught.value is REFUSED) == (expected is RuntimeError)
    assert asked == ([] if capturing else [device])


def test_the_options_are_those_of_the_kernel(monkeypatch):
    seen = {}

    class Function:
        def __getitem__(self, grid):
            return lambda *arguments, **options: seen.update(options, grid=grid)

    monkeypatch.setattr(launcher, "load_kernel", lambda plan, kernel: Function())
    launch(PLAN, KERNEL, 5, tensors(), column=0)
    assert (seen["grid"], seen["num_warps"], seen["num_stages"]) == ((2,), 4, 1)


def test_a_persistent_kernel_takes_as_many_programs_as_there_are_multiprocessors(monkeypatch):
    monkeypatch.setattr(launcher, "_multiprocessors", lambda device: 3)
    device = torch.device("cuda", 0)
    assert launcher.grid_of(KERNEL, 40, device) == 10
    assert launcher.grid_of(replace(KERNEL, persistent=True), 40, device) == 3
    assert launcher.grid_of(replace(KERNEL, persistent=True), 5, device) == 2

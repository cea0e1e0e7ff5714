"""A file as a function of tensors: by position and by name, from several threads, and what does not fit is named."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from noble_fx import ExportError
from noble_fx.onnx_export.runs import Arrays, Bound
from noble_fx.runtime import OnnxModel


@pytest.fixture
def path(exported_add):
    return exported_add[1]


@pytest.fixture(params=[Arrays, Bound], ids=["arrays", "bound"])
def model(request, path):
    """The file in the variant that the CPU takes, and in the one that a GPU takes."""
    model = OnnxModel(path, threads=1)
    assert isinstance(model._run, Arrays)
    if request.param is Bound:
        model._run = Bound(model._session, model.device)
    return model


def test_by_position_and_by_name(exported_add, model, assert_same):
    live, x, y = exported_add[0], torch.randn(5, 8), torch.randn(5, 4)
    assert list(model.inputs) == ["x", "y"]
    with torch.no_grad():
        expected = live(x, y)
    for outputs in (model(x, y), model(y=y, x=x), model(x, y=y)):
        assert_same(outputs, expected)
    assert [out.dtype for out in model(x, y)] == [torch.float32, torch.bool, torch.int64]
    assert model.providers == ("CPUExecutionProvider",)
    assert model.warm_up(x, y) is model


def test_inputs_need_not_be_contiguous_or_without_gradients(exported_add, model, assert_same):
    x, y = torch.randn(8, 6).t()[::2].requires_grad_(), torch.randn(3, 8)[:, ::2]
    with torch.no_grad():
        expected = exported_add[0](x, y)
    assert_same(model(x, y), expected)
    empty = model(torch.ones(0, 8), torch.ones(0, 4))
    assert [out.shape for out in empty[:2]] == [(0, 4), (0, 4)]


def test_results_are_memory_of_their_own(model):
    x, y = torch.randn(5, 8), torch.randn(5, 4)
    first = model(x, y)[0]
    kept = first.clone()
    second = model(x + 1, y)[0]
    assert torch.equal(first, kept)
    kept = second.clone()
    first.zero_()
    assert torch.equal(second, kept)


def run_in_threads(model, cases, expected):
    """Each case fifty times in a thread of its own, all begun at once; raises what any thread raised."""
    begin = threading.Barrier(len(cases))

    def work(inputs, result):
        begin.wait(timeout=60)
        for _ in range(50):
            torch.testing.assert_close(model(*inputs)[0], result, rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(len(cases)) as threads:
        for future in [threads.submit(work, *pair) for pair in zip(cases, expected, strict=True)]:
            future.result()


def test_several_threads_at_once(exported_add, model):
    cases = [(torch.randn(n, 8), torch.randn(n, 4)) for n in range(1, 9)]
    with torch.no_grad():
        expected = [exported_add[0](*case)[0] for case in cases]
    run_in_threads(model, cases, expected)


@pytest.mark.parametrize("fault", ["raises", "nan", "another's result"])
def test_a_fault_in_one_thread_is_seen(fault):
    """The test above could fail: one of the threads meets each kind of trouble."""

    def model(x):
        if x.shape[0] == 3:
            if fault == "raises":
                raise ExportError("of this thread")
            return [x * float("nan") if fault == "nan" else x + 1]
        return [x]

    cases = [(torch.ones(n),) for n in range(1, 5)]
    with pytest.raises((AssertionError, ExportError)):
        run_in_threads(model, cases, [case[0] for case in cases])


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, "input 'x' is missing; the inputs are x, y"),
        ((torch.ones(3, 8),) * 3, {}, "3 inputs given, but the model takes 2"),
        ((torch.ones(3, 8),), {"z": torch.ones(1)}, "'z' is not an input"),
        ((torch.ones(3, 8),), {"x": torch.ones(3, 8)}, "'x' was given twice"),
        (
            (torch.ones(3, 8).double(), torch.ones(3, 4)),
            {},
            "'x' has dtype torch.float64, but the model takes torch.float32",
        ),
        ((torch.ones(8), torch.ones(3, 4)), {}, "'x' has 1 dimensions"),
        ((torch.ones(3, 9), torch.ones(3, 4)), {}, r"'x' is \[3, 9\], but the model takes"),
        (([1.0], torch.ones(3, 4)), {}, "'x' must be a tensor, not list"),
        ((torch.ones(3, 8), torch.ones(2, 4)), {}, "ONNX Runtime failed on these inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_named(model, args, named, message):
    with pytest.raises(ExportError, match=message):
        model(*args, **named)


def test_settings_that_cannot_be(path):
    for threads in (0, -1, 1.5, "2", True):
        with pytest.raises(ExportError, match="must be a positive number"):
            OnnxModel(path, threads=threads)
    with pytest.raises(ExportError, match="cuda_graph=True needs a GPU"):
        OnnxModel(path, device="cpu", cuda_graph=True)


def test_cuda_that_does_not_load_is_said(path, monkeypatch):
    monkeypatch.setattr("noble_fx.onnx_export.session.choose_device", lambda device: torch.device("cuda", 0))
    with pytest.raises(ExportError, match="device='cuda' was asked for, but CUDA or cuDNN could not be loaded"):
        OnnxModel(path, device="cuda")
    assert OnnxModel(path, device="auto").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.onnx", "does not exist; noble_fx.export_onnx"),
        ("", "is a folder"),
        ("a\0b", "does not exist|NUL|null"),
    ],
)
def test_paths_of_no_file(name, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        OnnxModel(tmp_path / name)


def test_what_is_no_path():
    with pytest.raises(ExportError, match=r"5 is no path; pass a str or a pathlib.Path"):
        OnnxModel(5)

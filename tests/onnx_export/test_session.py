import threading

import onnxruntime
import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ExportError
from noble_fx.onnx_export import session as onnx_model_module
from noble_fx.onnx_export.session import Arrays, Bound, FixedShapes
from noble_fx.runtime import OnnxModel


class Add(nn.Module):
    """Two inputs, three outputs of three types."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x, y):
        out = self.linear(x) + y
        return out, out > 0, out.argmax(-1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "add.onnx"
    model = noble_fx.transform(Add(), rank=2)
    noble_fx.export_onnx(model, (torch.randn(3, 8), torch.randn(3, 4)), file)
    return model.eval(), file


@pytest.fixture
def path(exported):
    return exported[1]


@pytest.fixture(params=[Arrays, Bound], ids=["arrays", "bound"])
def model(request, path):
    """The file by the way that the CPU takes, and by the one that a GPU takes."""
    model = OnnxModel(path, threads=1)
    assert isinstance(model._runner, Arrays)
    if request.param is Bound:
        model._runner = Bound(model._session, model.device)
    return model


def same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])


def test_by_position_and_by_name(exported, model):
    live, x, y = exported[0], torch.randn(5, 8), torch.randn(5, 4)
    assert list(model.inputs) == ["x", "y"]
    with torch.no_grad():
        expected = live(x, y)
    for found in (model(x, y), model(y=y, x=x), model(x, y=y)):
        same(found, expected)
    assert [out.dtype for out in model(x, y)] == [torch.float32, torch.bool, torch.int64]
    assert model.providers == ("CPUExecutionProvider",)
    assert model.warm_up(x, y) is model


def test_inputs_need_not_be_contiguous_or_without_gradients(exported, model):
    live = exported[0]
    x, y = torch.randn(8, 6).t()[::2].requires_grad_(), torch.randn(3, 8)[:, ::2]
    with torch.no_grad():
        expected = live(x, y)
    same(model(x, y), expected)
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


def test_several_threads_at_once(exported, model):
    live, wrong = exported[0], []
    cases = [(torch.randn(n, 8), torch.randn(n, 4)) for n in range(1, 9)]
    with torch.no_grad():
        expected = [live(*case)[0] for case in cases]

    def work(at):
        for _ in range(50):
            if (model(*cases[at])[0] - expected[at]).abs().max() > 1e-4:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_fixed_shapes_reuse_their_memory(exported):
    """What CUDA graphs need, on the CPU: the same addresses for the same shapes, and results that stay."""
    live, path = exported
    model = OnnxModel(path)
    model._runner = FixedShapes(model._session, model.device)
    x, y = torch.randn(5, 8), torch.randn(5, 4)
    with torch.no_grad():
        expected, other = live(x, y), live(x + 1, y)
    first = model(x, y)
    same(model(x + 1, y), other)
    same(first, expected)
    model(torch.randn(2, 8), torch.randn(2, 4))
    assert len(model._runner._graphs) == 2
    same(model(x, y), expected)
    assert len(model._runner._graphs) == 2


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
    with pytest.raises(ExportError, match="device='tpu' is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:0'"):
        OnnxModel(path, device="tpu")
    with pytest.raises(ExportError, match="device='cuda:x' is unknown"):
        OnnxModel(path, device="cuda:x")
    with pytest.raises(ExportError, match="threads=0 must be a positive number"):
        OnnxModel(path, threads=0)
    with pytest.raises(ExportError, match="cuda_graph=True needs a GPU"):
        OnnxModel(path, device="cpu", cuda_graph=True)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ExportError, match="no CUDA; install onnxruntime-gpu"):
            OnnxModel(path, device="cuda")


def test_cuda_that_does_not_load_is_said(path, monkeypatch):
    monkeypatch.setattr(onnx_model_module, "_device", lambda *_: torch.device("cuda", 0))
    with pytest.raises(ExportError, match="device='cuda' was asked for, but CUDA or cuDNN could not be loaded"):
        OnnxModel(path, device="cuda")
    assert OnnxModel(path, device="auto").device == torch.device("cpu")


def test_files_that_are_not_there(path, tmp_path):
    with pytest.raises(ExportError, match="does not exist"):
        OnnxModel(tmp_path / "nothing.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:200])
    with pytest.raises(ExportError, match=r"cut.onnx is truncated, or no ONNX file that ONNX Runtime can run"):
        OnnxModel(tmp_path / "cut.onnx")

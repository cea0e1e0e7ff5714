import onnxruntime
import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ExportError
from noble_fx.runtime import OnnxModel


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    class Add(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x, y):
            return self.linear(x) + y

    file = tmp_path_factory.mktemp("onnx") / "add.onnx"
    model = noble_fx.transform(Add(), rank=2)
    noble_fx.export_onnx(model, (torch.randn(3, 8), torch.randn(3, 4)), file)
    return file


def test_by_position_and_by_name(path):
    model, x, y = OnnxModel(path), torch.randn(5, 8), torch.randn(5, 4)
    assert list(model.inputs) == ["x", "y"]
    assert torch.equal(model(x, y), model(y=y, x=x))
    assert torch.equal(model(x, y), model(x, y=y))
    assert model.providers == ("CPUExecutionProvider",)


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
    ],
)
def test_inputs_that_do_not_fit_are_named(path, args, named, message):
    with pytest.raises(ExportError, match=message):
        OnnxModel(path)(*args, **named)


def test_devices_and_files_that_are_not_there(path, tmp_path):
    with pytest.raises(ExportError, match="device='tpu' is unknown"):
        OnnxModel(path, device="tpu")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ExportError, match="no CUDA; install onnxruntime-gpu"):
            OnnxModel(path, device="cuda")
    with pytest.raises(ExportError, match="does not exist"):
        OnnxModel(tmp_path / "nothing.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:200])
    with pytest.raises(ExportError, match="is no ONNX file that ONNX Runtime can run"):
        OnnxModel(tmp_path / "cut.onnx")

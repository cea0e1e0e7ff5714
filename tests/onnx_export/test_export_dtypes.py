"""A file takes and gives the dtypes of the model, and is compared with the model as it is."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ExportError
from noble_fx.runtime import OnnxModel
from tests.models import loud


class Mixed(nn.Module):
    """A float32 residual around a float16 layer, a float64 clock, complex and whole numbers: a dtype for each way."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(8, 16), nn.Linear(16, 16).half()
        self.register_buffer("start", torch.tensor(2048.0, dtype=torch.float64))
        self.register_buffer("turn", torch.polar(torch.ones(8), torch.arange(8.0)))

    def forward(self, ids, x, time, mask, phase):
        x = 1000 * x + self.embed(ids) + self.block(x.half()).float()
        pairs = torch.view_as_complex(x.unflatten(-1, (8, 2))) * self.turn
        return torch.view_as_real(pairs).flatten(1) * mask[:, None], time - self.start, phase * 1j, ids + 1


def inputs(rows: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(rows)
    ids, mask = torch.arange(rows, dtype=torch.int32) % 8, torch.arange(rows) % 3 > 0
    time = 2048.0 + torch.rand(rows, dtype=torch.float64)
    return ids, torch.randn(rows, 16), time, mask, torch.randn(rows, dtype=torch.complex64)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A model of many dtypes, the report of its file, and the file."""
    torch.manual_seed(0)
    model = loud(noble_fx.transform(Mixed(), rank=4, select="all")).eval()
    report = noble_fx.export_onnx(model, inputs(3), tmp_path_factory.mktemp("onnx") / "m.onnx")
    return model, report, OnnxModel(report.path, device="cpu")


def test_inputs_and_outputs_have_the_models_dtypes(mixed):
    _, report, _ = mixed
    assert {name: text.split(" ")[0] for name, text in report.inputs.items()} == {
        "ids": "INT32", "x": "FLOAT", "time": "DOUBLE", "mask": "BOOL", "phase": "FLOAT"
    }  # fmt: skip
    assert [text.split(" ")[0] for text in report.outputs.values()] == ["FLOAT", "DOUBLE", "FLOAT", "INT32"]


def test_nothing_is_rounded_that_the_model_does_not_round(mixed):
    model, _, file = mixed
    args = inputs(5)
    with torch.no_grad():
        y, time, phase, ids = model(*args)
    results = file(*args[:-1], torch.view_as_real(args[-1]))
    torch.testing.assert_close(results[0], y, rtol=1e-5, atol=2e-2)  # 1000 x alone would be off by 1 in float16
    assert torch.equal(results[1], time)
    torch.testing.assert_close(torch.view_as_complex(results[2]), phase)
    assert torch.equal(results[3], ids)


class Scaled(nn.Module):
    """Rounds to nothing in float16: 1e-9 there is zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.tensor(1e-9))

    def forward(self, x):
        return self.linear(x * self.scale) / self.scale


def test_a_dtype_that_is_asked_for_is_compared_with_the_model_as_it_is(tmp_path):
    """The model cast to float16 and its file agree, and both are wrong."""
    with pytest.raises(ExportError, match=r"differs from PyTorch by .*in float16"):
        noble_fx.export_onnx(Scaled(), (torch.ones(2, 4),), tmp_path / "m.onnx", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


class TwoLinears(nn.Module):
    """A float32 layer before a float64 one; says which entry is the largest."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4).double()

    def forward(self, x):
        y = self.second(self.first(x).to(self.second.weight.dtype))
        return y, y.argmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_dtype_is_for_all_parts_and_inputs(dtype, tmp_path):
    torch.manual_seed(0)
    model, path = TwoLinears(), tmp_path / "m.onnx"
    report = noble_fx.export_onnx(model, (torch.randn(3, 4),), path, dtype=dtype)
    file = OnnxModel(path, device="cpu")
    assert file(torch.randn(2, 4, dtype=dtype))[0].dtype == dtype
    assert list(report.outputs.values()) == [
        f"{'FLOAT16' if dtype == torch.float16 else 'FLOAT'} [batch,4]",
        "INT64 [batch]",
    ]
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.float64}

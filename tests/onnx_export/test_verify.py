"""A wrong file is caught, at whatever size it is wrong."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ExportError
from noble_fx.demo.byte_gpt import ByteGPT
from noble_fx.onnx_export.verify import difference
from tests.models import loud, tokens

X = torch.ones(2, 3)


class WrongAtOne(nn.Module):
    """Python that looks at a size: a file made from two rows is wrong for one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        y = self.linear(x)
        return y * 2 if x.shape[0] == 1 else y


def test_a_size_that_the_file_gets_wrong_is_found(tmp_path):
    model = loud(noble_fx.transform(WrongAtOne(), rank=2, capture="modules"))
    with pytest.raises(ExportError, match=r"differs from PyTorch by .*was not written"):
        noble_fx.export_onnx(model, (torch.randn(3, 8),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match="was written all the same"):
        report = noble_fx.export_onnx(model, (torch.randn(3, 8),), tmp_path / "m.onnx", verify="warn")
    assert report.largest_error > report.tolerance
    assert "NOT ≤" in str(report)
    report = noble_fx.export_onnx(model, (torch.randn(3, 8),), tmp_path / "m.onnx", verify=False, overwrite=True)
    assert report.largest_error is None
    assert "not verified" in str(report)


def test_a_nan_is_no_small_difference():
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
    for expected, result in ((good, bad), (bad, good)):
        error, _ = difference(expected, result)
        assert error != error
    masked = torch.tensor([float("-inf"), 1.0])
    assert difference(masked, masked.clone()) == (0.0, 1.0)
    assert difference(masked, torch.tensor([float("inf"), 1.0]))[0] == float("inf")


def test_the_difference_of_an_output():
    assert difference(torch.tensor([1.0, 8.0]), torch.tensor([1.5, 8.0])) == (0.5, 8.0)
    assert difference(torch.empty(0), torch.empty(0)) == (0.0, 0.0)
    indices = torch.tensor([3, 700, 9, 1])
    assert difference(indices, indices.clone()) == (0.0, 0.0)
    assert difference(indices, torch.tensor([3, 701, 9, 1])) == (0.25, 0.0)  # another entry, however near its number


class Result(nn.Module):
    def forward(self, x):
        return x + 1, x > 0


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([X + 1], "the model returns 2 tensors, but the file 1"),
        ([X[:1] + 1, X > 0], r"an output is \[2, 3\] in PyTorch and \[1, 3\] in the file"),
        ([X.double() + 1, X > 0], "an output is torch.float32 in PyTorch and torch.float64 in the file"),
        ([X + 1, (X > 0).long()], "an output is torch.bool in PyTorch and torch.int64 in the file"),
    ],
)
def test_other_tensors_are_another_model(results, message, monkeypatch, tmp_path):
    monkeypatch.setattr("noble_fx.onnx_export.verify._runner", lambda path: (lambda tensors: results, "a runner"))
    with pytest.raises(ExportError, match=message):
        noble_fx.export_onnx(Result(), (X,), tmp_path / "m.onnx")


class Breaks(nn.Module):
    """Takes what an exporter passes, and fails when it is called."""

    def forward(self, x):
        if not torch.compiler.is_exporting():
            raise RuntimeError("no kernel for this\nand a page of advice")
        return x + 1


def test_a_model_that_fails_itself_is_no_raw_error(tmp_path):
    message = "the model fails on its example inputs, .*: RuntimeError: no kernel for this; correct them, or pass verif"
    with pytest.raises(ExportError, match=message):
        noble_fx.export_onnx(Breaks(), (torch.ones(2, 3),), tmp_path / "m.onnx")
    assert noble_fx.export_onnx(Breaks(), (torch.ones(2, 3),), tmp_path / "m.onnx", verify=False).largest_error is None


def test_a_size_that_the_model_refuses_is_passed_over(tmp_path):
    class Context(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.position = nn.Embedding(20, 8), nn.Parameter(torch.randn(6, 8))
            self.linear = nn.Linear(8, 8)

        def forward(self, idx):
            return self.linear(self.embed(idx) + self.position[: idx.shape[1]])

    model = loud(noble_fx.transform(Context(), rank=2))
    report = noble_fx.export_onnx(model, (tokens(2, 5),), tmp_path / "m.onnx")
    assert report.checked == ("[2, 5]", "[1, 1]", "[1, 4]", "[3, 6]")


@pytest.mark.long
def test_a_graph_that_does_not_take_a_size_prints_nothing(tmp_path, capsys):
    """A traced graph prints its code where it fails; a size that is merely tried is no failure."""
    model = noble_fx.transform(ByteGPT(width=16, layers=1, heads=2, context=8), rank=2, capture="fx")
    assert isinstance(model, torch.fx.GraphModule)
    report = noble_fx.export_onnx(model, (tokens(1, 5),), tmp_path / "m.onnx")
    assert report.checked == ("[1, 5]", "[1, 1]", "[1, 4]", "[2, 6]")  # not 10
    assert "Call using an FX-traced Module" not in capsys.readouterr().err


def test_ranges_that_the_caller_gave_are_kept(tmp_path):
    model = loud(noble_fx.transform(nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8)), rank=4, select="all"))
    shapes = ({0: torch.export.Dim("rows", min=2, max=4)},)
    report = noble_fx.export_onnx(model, (tokens(3, 5),), tmp_path / "m.onnx", dynamic_shapes=shapes)
    assert report.checked == ("[3, 5]", "[2, 5]", "[4, 5]")
    assert report.inputs == {"input": "INT64 [rows,5]"}

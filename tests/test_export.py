"""ONNX files say what PyTorch says, and a failed export leaves nothing."""

import json

import onnx
import pytest
import torch
from torch import Tensor, nn

import noble_fx
from noble_fx import ExportError
from noble_fx.runtime import OnnxModel
from tests.models import WithOptional, loud, tiny, tokens, transformed


@pytest.fixture(scope="module", params=["fx", "modules"])
def exported(request, tmp_path_factory):
    model = transformed(request.param).train()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = noble_fx.export_onnx(model, (tokens(1, 5),), path)
    assert model.training  # the live model is as it was
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    return model.eval(), report


def test_the_report(exported):
    _, report = exported
    assert report.largest_error < 1e-5
    assert report.checked == ("[1, 5]", "[2, 5]", "[1, 4]")
    assert report.size == report.path.stat().st_size
    assert str(report.path) in str(report).replace("\n", "").replace(" ", "")
    assert [p.name for p in report.path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (7, 2)])
def test_batch_and_sequence_are_dynamic(exported, shape):
    model, report = exported
    torch.testing.assert_close(OnnxModel(report.path)(tokens(*shape)), model(tokens(*shape)), rtol=1e-4, atol=1e-4)


def test_the_branch_is_in_the_file(exported):
    model, report = exported
    with noble_fx.disabled(model):
        base = model(tokens())
    assert (OnnxModel(report.path)(tokens()) - base).abs().max() > 0.1
    graph = onnx.load(report.path)
    onnx.checker.check_model(graph)
    assert sum(node.op_type == "Cos" for node in graph.graph.node) == 24
    assert {node.domain for node in graph.graph.node} == {""}


def test_the_file_says_what_it_is(exported):
    _, report = exported
    properties = {p.key: p.value for p in onnx.load(report.path).metadata_props}
    described = json.loads(properties["noble_fx"])
    assert described["config"]["rank"] == 4
    assert len(described["sites"]) == 12


def test_size_is_that_of_the_parameters(tmp_path):
    model = noble_fx.transform(tiny(width=256), rank=16)
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx")
    assert report.size < 1.02 * 4 * sum(p.numel() for p in model.parameters())
    assert b"noble_fx/transform.py" not in report.path.read_bytes()  # no stack traces of the machine it was made on


@pytest.mark.parametrize("act", ["swiglu_net", "gelu_scale", "leaky_relu", "cosnet_double"])
def test_other_activations(act, tmp_path):
    model = loud(noble_fx.transform(tiny(layers=1), rank=4, act=act, select="all", preset="reference"))
    assert noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx").largest_error < 1e-4


class TwoInputs(nn.Module):
    """Keyword inputs, a constant, several outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        out = self.linear(x) * scale
        return {"out": out if y is None else out + y, "mean": out.mean(-1)}


def test_keywords_and_several_outputs(tmp_path):
    model = loud(noble_fx.transform(TwoInputs(), rank=2))
    kwargs = {"y": torch.randn(3, 8), "scale": 2.0}
    x = torch.randn(3, 8)
    noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx", kwargs=kwargs)
    out, mean = OnnxModel(tmp_path / "m.onnx")(x, y=kwargs["y"])
    expected = model(x, **kwargs)
    torch.testing.assert_close(out, expected["out"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean, expected["mean"], rtol=1e-4, atol=1e-5)


def test_a_view_is_a_fine_example(tmp_path):
    model = noble_fx.transform(tiny(layers=1), rank=4)
    assert noble_fx.export_onnx(model, (tokens(2, 6)[:, :-1],), tmp_path / "m.onnx").largest_error < 1e-4


def test_another_dtype_leaves_the_model_alone(tmp_path):
    model = transformed("modules")
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx", dtype=torch.float16)
    assert next(model.parameters()).dtype == torch.float32
    assert OnnxModel(report.path)(tokens()).dtype == torch.float16


def refuse(message, *args, **kwargs):
    with pytest.raises(ExportError, match=message):
        noble_fx.export_onnx(*args, **kwargs)


def test_refusals_leave_nothing(tmp_path, monkeypatch):
    model, path = noble_fx.transform(tiny(layers=1), rank=4), tmp_path / "m.onnx"
    refuse("needs example inputs", model, (), path)
    refuse(
        r"dtype=torch.bfloat16 cannot be exported.*use one of float64, float32, float16",
        model,
        (tokens(),),
        path,
        dtype=torch.bfloat16,
    )
    refuse("the model cannot be exported", WithOptional(), (torch.ones(2, 3, 4),), path)
    monkeypatch.setattr("noble_fx.export._difference", lambda *_: 1.0)
    refuse(r"differs from PyTorch by 1.00e\+00 .allowed: 0.0001.*was not written", model, (tokens(),), path)
    monkeypatch.setattr("noble_fx.export._difference", lambda *_: float("nan"))
    refuse("differs from PyTorch by nan", model, (tokens(),), path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    refuse("exists; remove it", model, (tokens(),), path)
    assert path.read_text() == "mine"
    refuse("cannot write beside", model, (tokens(),), path / "below.onnx")

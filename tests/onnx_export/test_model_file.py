"""The file itself: weights once, two files above the limit, nothing of this machine, types that exist."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx import ExportError
from noble_fx.onnx_export import model_file
from noble_fx.runtime import OnnxModel
from tests.models import loud, tiny, tokens


class Tied(nn.Module):
    """Embedding and head share one weight, which is most of the model."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(400, 64)
        self.linear = nn.Linear(64, 64)
        self.head = nn.Linear(64, 400, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, idx):
        return self.head(torch.relu(self.linear(self.embed(idx))))


@pytest.mark.parametrize("functions", [False, True])
def test_tied_weights_are_stored_once(functions, tmp_path):
    model = loud(noble_fx.transform(Tied(), rank=4, select=["linear", "head"]))
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx", functions=functions)
    assert report.size < 4 * sum(p.numel() for p in model.parameters()) + 20_000  # the tied weight alone is 102,400
    assert report.kept == (
        {} if functions else {"join_up: another product reads the same matrix, which would be stored twice": 1}
    )


def test_above_the_limit_the_weights_go_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "SINGLE_FILE_LIMIT", 10_000)
    model = loud(noble_fx.transform(tiny(width=32), rank=4))
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert report.size == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert (tmp_path / "m.onnx.data").stat().st_size > (tmp_path / "m.onnx").stat().st_size
    expected = model.eval()(tokens())
    torch.testing.assert_close(OnnxModel(tmp_path / "m.onnx")(tokens()), expected, rtol=1e-4, atol=1e-4)
    assert sum(site.selected for site in noble_fx.sites(tmp_path / "m.onnx")) == 12
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ExportError, match="truncated, or no ONNX file"):
        OnnxModel(tmp_path / "m.onnx")


def test_nothing_of_this_machine_is_in_the_file(tmp_path):
    model = noble_fx.transform(tiny(layers=1), rank=4)
    for functions in (False, True):
        noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx", functions=functions, overwrite=True)
        written = onnx.load(tmp_path / "m.onnx")
        nodes = [*written.graph.node, *(node for f in written.functions for node in f.node)]
        assert not any(node.metadata_props or node.doc_string for node in nodes)
        raw = (tmp_path / "m.onnx").read_bytes()
        assert b".py" not in raw
        assert str(tmp_path).encode() not in raw


def test_dynamic_sizes_have_names(tmp_path):
    model = noble_fx.transform(tiny(layers=1), rank=4)
    noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    sizes = [value.type.tensor_type.shape.dim for value in (graph.input[0], graph.output[0])]
    shapes = [[dim.dim_param or dim.dim_value for dim in dims] for dims in sizes]
    assert shapes == [["batch", "sequence"], ["batch", "sequence", 20]]


class Cosine(nn.Module):
    """A cosine of the model's own, in the model's dtype."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.cos(F.layer_norm(self.linear(x), (8,)))


class Named(nn.Module):
    """Returns what `wrap` makes of a few tensors."""

    def __init__(self, wrap):
        super().__init__()
        self.linear, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, x):
        return self.wrap(x, self.linear(x))


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda x, y: y, ["output"]),
        (lambda x, y: (y, y + 1), ["output_0", "output_1"]),
        (lambda x, y: {"logits": y, "states": [y + 1, y + 2]}, ["logits", "states_0", "states_1"]),
        (lambda x, y: [{"a": y}, None, y + 1], ["output_0_a", "output_2"]),
        (lambda x, y: {"x": y, "none": None}, ["x_out"]),  # x is the input's name
        (lambda x, y: {"same": x, "y": y}, ["same", "y"]),
        (lambda x, y: {"x": x, "y": y}, ["x_out", "y"]),
        (lambda x, y: {"one": y, "other": y}, ["one", "other"]),
    ],
)
def test_outputs_are_called_as_the_model_does(wrap, names, tmp_path):
    model = loud(noble_fx.transform(Named(wrap), rank=2, select="all", capture="modules"))
    report = noble_fx.export_onnx(model, (torch.randn(3, 4),), tmp_path / "m.onnx")
    assert list(report.outputs) == OnnxModel(report.path).outputs == names
    assert list(report.inputs) == ["x"]
    assert report.largest_error < 1e-5
    found = OnnxModel(report.path)(x=torch.randn(2, 4))
    assert (1 if isinstance(found, torch.Tensor) else len(found)) == len(names)


def test_a_type_that_the_opset_lacks_is_refused_with_the_remedy(tmp_path):
    model, x = noble_fx.transform(Cosine(), rank=2), torch.randn(3, 8)
    with pytest.raises(ExportError, match=r"Cos takes no bfloat16 in opset 20; pass opset=22, or dtype=torch.float16"):
        noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx", dtype=torch.bfloat16, opset=20)
    assert list(tmp_path.iterdir()) == []
    report = noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx", dtype=torch.bfloat16)
    assert report.opset == 22
    assert report.largest_error <= report.tolerance
    assert report.verified_by.startswith("the reference evaluator of ONNX (ONNX Runtime has no kernel")
    with pytest.raises(noble_fx.runtime.onnx_model.MissingKernel, match="no kernel on cpu for this file"):
        OnnxModel(tmp_path / "m.onnx")

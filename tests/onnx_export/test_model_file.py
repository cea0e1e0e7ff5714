"""The file itself: weights once, two files above the limit, nothing of this machine, types that exist."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx import ExportError
from noble_fx.onnx_export import model_file
from noble_fx.onnx_export.open_session import MissingKernel
from noble_fx.runtime import OnnxModel
from tests.models import loud, tiny, tokens
from tests.samples import crossed, long


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


@pytest.mark.parametrize("functions", [False, long(True)])
def test_tied_weights_are_stored_once(functions, tmp_path):
    model = loud(noble_fx.transform(Tied(), rank=4, select=["linear", "head"]))
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx", functions=functions)
    assert report.size < 4 * sum(p.numel() for p in model.parameters()) + 20_000  # the tied weight alone is 102,400
    assert report.kept == (
        {} if functions else {"join_up: another product reads the same matrix, which would be stored twice": 1}
    )


class Masked(nn.Module):
    """Two layers, each with a mask of its own, as GPT-2 has them: equal, and larger than the weights."""

    def __init__(self, transpose):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(2))
        for layer in self.layers:
            mask = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).sign()
            layer.register_buffer("mask", mask.t() if transpose else mask)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) @ layer.mask
        return x


@pytest.mark.parametrize(("dtype", "transpose"), crossed([torch.float32, torch.float16, torch.bfloat16], [False, True]))
def test_equal_weights_of_two_names_are_stored_once(dtype, transpose, tmp_path):
    model = noble_fx.transform(Masked(transpose), rank=2, select="all", capture="modules")
    noble_fx.export_onnx(model, (torch.randn(3, 64),), tmp_path / "m.onnx", dtype=dtype)
    large = [tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer if 64 in tensor.dims]
    assert sum("mask" in name for name in large) == 1, large


class ReturnsWeight(nn.Module):
    """Returns a weight beside its output."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 48, bias=False)
        self.register_buffer("twin", self.linear.weight.detach().clone())

    def forward(self, x):
        return self.linear(x) @ self.twin, self.linear.weight, self.twin


def test_weights_that_are_returned_keep_their_names(tmp_path):
    model = ReturnsWeight()
    report = noble_fx.export_onnx(model, (torch.randn(3, 48),), tmp_path / "m.onnx")
    assert list(report.outputs)[1:] == ["linear.weight", "twin"]
    _, weight, twin = OnnxModel(report.path)(torch.randn(2, 48))
    assert torch.equal(weight, model.linear.weight)
    assert torch.equal(twin, model.twin)


class Flipped(nn.Module):
    """A weight that lies transposed in memory, and a convolution's in channels last."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 30).t())
        self.convolution = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.convolution(x).mean((2, 3)) @ self.weight[:5] + self.weight.sum()


def test_weights_lie_in_memory_as_they_like(tmp_path):
    model = Flipped()
    before = [parameter.stride() for parameter in model.parameters()]
    report = noble_fx.export_onnx(model, (torch.randn(2, 3, 6, 6),), tmp_path / "m.onnx")
    assert report.largest_error < 1e-4
    assert [parameter.stride() for parameter in model.parameters()] == before


def test_above_the_limit_the_weights_go_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "SINGLE_FILE_LIMIT", 10_000)
    model = loud(noble_fx.transform(tiny(width=48, layers=1), rank=4))
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert report.size == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert (tmp_path / "m.onnx.data").stat().st_size > (tmp_path / "m.onnx").stat().st_size
    expected = model.eval()(tokens())
    torch.testing.assert_close(OnnxModel(tmp_path / "m.onnx")(tokens()), expected, rtol=1e-4, atol=1e-4)
    assert sum(site.selected for site in noble_fx.sites(tmp_path / "m.onnx")) == 6
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ExportError, match="truncated, or no ONNX file"):
        OnnxModel(tmp_path / "m.onnx")


class Conditional(nn.Module):
    """Python's `if` as an operator, whose branches are graphs inside the graph."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.linear(x).cos(), lambda x: self.linear(x + 1).sin(), (x,))


def test_graphs_inside_the_graph_are_tidied(tmp_path):
    noble_fx.export_onnx(Conditional(), (torch.randn(3, 8),), tmp_path / "m.onnx")
    (node,) = (node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == "If")
    for graph in (attribute.g for attribute in node.attribute):
        for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
            assert not part.metadata_props, part
            assert not part.doc_string, part
    assert b".py" not in (tmp_path / "m.onnx").read_bytes()


@pytest.mark.parametrize("functions", [long(False), True])
def test_nothing_of_this_machine_is_in_the_file(functions, tmp_path):
    layers = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 8))
    model = noble_fx.transform(layers.eval(), rank=4, select="all")
    noble_fx.export_onnx(model, (torch.randn(2, 5, 8),), tmp_path / "m.onnx", functions=functions)
    written = onnx.load(tmp_path / "m.onnx")
    graph = written.graph
    nodes = [*graph.node, *(node for f in written.functions for node in f.node)]
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    assert len(nodes) > 20
    assert len(values) > 20
    for part in (graph, *written.functions, *nodes, *values):
        assert not part.metadata_props, part
        assert not part.doc_string, part
    raw = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in raw
    assert b"pkg." not in raw
    assert str(tmp_path).encode() not in raw


class Cosine(nn.Module):
    """A cosine of the model's own, in the model's dtype."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.cos(F.layer_norm(self.linear(x), (8,)))


def test_a_type_that_the_opset_lacks_is_refused_with_the_remedy(tmp_path):
    model, x = noble_fx.transform(Cosine(), rank=2), torch.randn(3, 8)
    with pytest.raises(ExportError, match=r"Cos takes no bfloat16 in opset 20; pass opset=22, or dtype=torch.float16"):
        noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx", dtype=torch.bfloat16, opset=20)
    assert list(tmp_path.iterdir()) == []
    report = noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx", dtype=torch.bfloat16)
    assert report.opset == 22
    assert report.largest_error <= report.tolerance
    assert report.verified_by.startswith("the reference evaluator of ONNX (ONNX Runtime has no kernel")
    with pytest.raises(MissingKernel, match="no kernel on cpu for this file"):
        OnnxModel(tmp_path / "m.onnx")


def test_a_file_that_is_not_valid_is_refused(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Cos", ["nobody"], ["x"])], "g", [], [x])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"the exported file is not valid ONNX: .*nobody"):
        model_file.check(tmp_path / "m.onnx", 22)
    assert model_file._remedy("Cos", "bfloat16", 20) == "pass opset=22, or dtype=torch.float16"
    assert model_file._remedy("Cos", "int8", 20) == "pass dtype=torch.float16 or torch.float32"

"""One node a site: the same numbers, and a body that serves every site of its kind."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.runtime import OnnxModel
from tests.models import loud, tiny, tokens
from tests.samples import long


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    model = loud(noble_fx.transform(tiny(layers=1), rank=4, capture="modules"))
    noble_fx.export_onnx(model, (tokens(),), folder / "boxes.onnx", functions=True)
    noble_fx.export_onnx(model, (tokens(),), folder / "flat.onnx")
    return model, folder


def test_each_site_is_one_node_named_like_its_layer(both):
    _, folder = both
    model = onnx.load(folder / "boxes.onnx")
    boxes = [node for node in model.graph.node if node.domain == "noble_fx"]
    assert {node.op_type for node in boxes} == {"Linear"}
    assert len(boxes) == 6
    assert "blocks.0.fc2" in {node.name for node in boxes}
    assert "Cos" not in {node.op_type for node in model.graph.node}
    named = [site.fqn for site in noble_fx.sites(folder / "boxes.onnx") if site.selected]
    assert sorted(named) == sorted(node.name for node in boxes)
    # k_proj has no bias: two kinds, so two overloads
    assert Counter(node.overload for node in boxes) == Counter(
        {f.overload: (1 if "no_bias" in f.overload else 5) for f in model.functions}
    )
    onnx.checker.check_model(model, full_check=True)


def test_the_numbers_are_those_of_the_flat_file(both):
    model, folder = both
    for shape in ((1, 1), (3, 7)):
        boxes = OnnxModel(folder / "boxes.onnx")(tokens(*shape))
        torch.testing.assert_close(boxes, OnnxModel(folder / "flat.onnx")(tokens(*shape)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(boxes, model(tokens(*shape)), rtol=1e-4, atol=1e-4)


class Mixed(nn.Module):
    """Sites of two ranks of x, with a bias and without, square and not, one layer called twice."""

    def __init__(self):
        super().__init__()
        self.deep, self.bare = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.square, self.wide = nn.Linear(16, 16), nn.Linear(16, 24)

    def forward(self, x):
        h = self.bare(self.deep(x).tanh())
        return self.wide(self.square(self.square(h.mean(1))))


@pytest.mark.parametrize(
    ("act", "dtype"),
    [("swiglu_net", torch.float16), long("swiglu_net", torch.float32), long("cosnet", torch.float16)],
)
def test_kinds_do_not_mix(act, dtype, tmp_path):
    torch.manual_seed(0)
    model = loud(noble_fx.transform(Mixed(), rank=4, act=act, select="all", capture="modules", preset="reference"))
    report = noble_fx.export_onnx(model, (torch.randn(2, 5, 16),), tmp_path / "m.onnx", functions=True, dtype=dtype)
    assert report.largest_error <= report.tolerance
    written = onnx.load(tmp_path / "m.onnx")
    names = [node.name for node in written.graph.node if node.domain == "noble_fx"]
    assert sorted(names) == ["bare", "deep", "square", "square_2", "wide"]
    assert {f.overload.split("_r4_")[1] for f in written.functions} == {"2d", "3d", "3d_no_bias"}


def test_one_kind_needs_no_overload(tmp_path):
    layers = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
    model = loud(noble_fx.transform(layers.eval(), rank=4, select="all"))
    noble_fx.export_onnx(model, (torch.randn(2, 5, 8),), tmp_path / "m.onnx", functions=True, fold=False)
    (function,) = onnx.load(tmp_path / "m.onnx").functions
    assert (function.domain, function.name, function.overload) == ("noble_fx", "Linear", "")
    assert list(function.input)[:6] == ["x", "weight", "bias", "down", "down_bias", "up"]
    assert sum(node.op_type == "Cos" for node in function.node) == 2

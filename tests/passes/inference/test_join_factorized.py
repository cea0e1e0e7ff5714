"""A factorized site becomes two products, where nothing else reads its matrices."""

import onnx
import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.bases.low_rank import LowRank
from noble_fx.layers.restructure import structure
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import branch_operands, factorized_layer, traced
from noble_fx.passes.inference.join_down import STORED_TWICE
from noble_fx.passes.inference.join_factorized import join_factorized
from noble_fx.passes.rule import run_passes
from noble_fx.schema import FACTORIZED


def test_rewrite():
    check_rewrite(join_factorized, join_factorized.example)


@pytest.mark.parametrize("read", ["down", "up"])
def test_a_matrix_that_is_read_elsewhere_is_not_stored_twice(read):
    def before(m, x):
        y = FACTORIZED(x, m.base.down, m.base.up, m.bias, *branch_operands(m.noble))
        return y + getattr(m.base, read).sum()

    graph = traced(before, factorized_layer())
    (step,) = run_passes(graph, noble_fx.passes.rule.Pipeline((join_factorized,)))
    assert step.skipped == STORED_TWICE


def test_matrices_that_are_computed_stay_apart():
    def before(m, x):
        return FACTORIZED(x, m.base.down * x.sum(), m.base.up, m.bias, *branch_operands(m.noble))

    graph = traced(before, factorized_layer())
    (step,) = run_passes(graph, noble_fx.passes.rule.Pipeline((join_factorized,)))
    assert "computed in the graph" in step.skipped


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize(("join", "gemms"), [("auto", 4), (False, 8)])
def test_in_a_file_a_site_is_two_products(join, gemms, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(Block())
    for layer in (model[0].up, model[0].down):
        base = LowRank(layer.in_features, layer.out_features, 8)
        base.fill(layer.weight)
        structure(layer, base, layer.bias)
    noble_fx.transform(model, rank=4, act="cos", select="all", seed=0)
    report = noble_fx.export_onnx(model, (torch.randn(3, 32),), tmp_path / "m.onnx", join=join)
    assert report.largest_error <= report.tolerance
    nodes = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert nodes.count("Gemm") + nodes.count("MatMul") == gemms
    assert nodes.count("Concat") == (2 if join else 0)

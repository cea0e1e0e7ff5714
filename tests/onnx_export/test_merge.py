"""Whatever kind of branch says that it is affine is one with its layer in a file."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx.branches.base import Branch
from noble_fx.onnx_export.merge import merge_in_place
from tests.models import loud, tiny


class Affine(Branch):
    """x Dᵀ Uᵀ + c with a U that is scaled: no form that the operator knows."""

    kind = "affine"

    def __init__(self, in_features, out_features, rank, config, role="other"):
        super().__init__(in_features, out_features, rank, config, role)
        self.down, self.up = nn.Parameter(torch.empty(rank, in_features)), nn.Parameter(torch.empty(out_features, rank))
        self.shift = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x, rows=None):
        rows = slice(None) if rows is None else rows
        return F.linear(F.linear(x, self.down), 3 * self.up[rows]) + self.shift[rows]

    def merged(self):
        return 3 * self.up @ self.down, self.shift


def model(bias=True):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 8, bias=bias), nn.Tanh(), nn.Linear(8, 6, bias=bias))
    return noble_fx.transform(layers, rank=2, select="all", branch=Affine)


@pytest.mark.parametrize("bias", [True, False])
def test_a_kind_of_the_users_own(bias):
    live, x = model(bias).double(), torch.randn(3, 8, dtype=torch.float64)
    merged = copy.deepcopy(live)
    assert [step.node for step in merge_in_place(merged)] == ["0", "2"]
    assert type(merged[0]) is nn.Linear
    torch.testing.assert_close(merged(x), live(x))
    torch.testing.assert_close(merged[0].weight, live[0].weight)  # for whatever else reads it


def test_what_is_not_affine_or_not_the_kinds_alone_stays():
    for change in (
        lambda m: m[0].noble.register_forward_hook(lambda *args: None),
        lambda m: setattr(m[0].noble, "enabled", False),
    ):
        merged = model()
        change(merged)
        assert [step.node for step in merge_in_place(merged)] == ["2"]
    assert merge_in_place(noble_fx.transform(tiny(), rank=2)) == []
    assert merge_in_place(noble_fx.transform(tiny(), rank=2, act="identity", capture="fx")) == []


def test_a_file_has_one_product_a_site(tmp_path):
    live, x = model(), torch.randn(3, 8)
    report = noble_fx.export_onnx(live, (x,), tmp_path / "m.onnx")
    assert report.passes == {"merge_branch": 2}
    assert report.nodes == 3  # Gemm, Tanh, Gemm
    base = noble_fx.export_onnx(noble_fx.remove(live), (x,), tmp_path / "base.onnx", verify=False)
    assert report.size < base.size + 1000


def test_the_bundled_linear_activation(tmp_path):
    live = loud(noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=2, act="identity", select="all"))
    report = noble_fx.export_onnx(live, (torch.randn(3, 8),), tmp_path / "m.onnx", functions=True)
    assert report.passes == {"merge_branch": 1}
    assert report.kept == {}

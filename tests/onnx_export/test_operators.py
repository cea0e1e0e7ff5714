"""What torch's exporter has no ONNX for: experts' products, attention without heads, and the error for the rest."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx import ExportError
from noble_fx.runtime import OnnxModel
from tests.models import loud
from tests.samples import long
from tests.zoo import ZOO, transform_entry


@pytest.mark.parametrize("capture", [long("modules"), long("export")])
def test_experts(capture, tmp_path):
    """One token of six goes to two of four experts: the others multiply no rows."""
    pytest.importorskip("transformers")
    entry = next(entry for entry in ZOO if entry.name == "Mixtral")
    torch.manual_seed(0)
    model = loud(transform_entry(entry, capture, entry.build().eval()))
    report = noble_fx.export_onnx(model, path=tmp_path / "m.onnx", kwargs=entry.inputs())
    assert report.largest_error < 1e-5
    assert "[1, 1]" in report.checked
    assert report.passes["fold_branch"] == 10  # 2 × 3 of the experts, 4 of attention


class OneHead(nn.Module):
    """Attention of [B, T, C], no heads."""

    def __init__(self, masked, causal):
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.masked, self.causal = masked, causal

    def forward(self, x):
        scores = x @ x.transpose(1, 2)
        mask = {"none": None, "2d": scores[0] > 0, "3d": scores}[self.masked]
        return F.scaled_dot_product_attention(self.q(x), self.k(x), x, mask, is_causal=self.causal, scale=0.3)


@pytest.mark.parametrize(
    ("mask", "functions"),
    [
        (("none", True), False),
        (("3d", False), True),
        *(long(mask, functions) for mask in (("none", False), ("2d", False)) for functions in (False, True)),
        long(("none", True), True),
        long(("3d", False), False),
    ],
)
def test_attention_without_heads(mask, functions, tmp_path):
    masked, causal = mask
    torch.manual_seed(0)
    model = loud(noble_fx.transform(OneHead(masked, causal).eval(), rank=2, select="all", capture="modules"))
    report = noble_fx.export_onnx(model, (torch.randn(2, 5, 8).abs(),), tmp_path / "m.onnx", functions=functions)
    x = torch.randn(3, 7, 8).abs()
    torch.testing.assert_close(OnnxModel(report.path)(x), model(x), rtol=1e-4, atol=1e-5)


@torch.library.custom_op("noble_fx_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@opaque.register_fake
def _(x):
    return torch.empty_like(x)


class Opaque(nn.Module):
    def forward(self, x):
        return opaque(x)


def test_an_operator_without_onnx_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"No ONNX function found for .*noble_fx_tests\.opaque") as caught:
        noble_fx.export_onnx(Opaque(), (torch.randn(3, 4),), tmp_path / "m.onnx")
    assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []

"""What a class multiplies with, read from its source."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.sites.source import multiplied


class Base(nn.Module):
    def product(self, x):
        return torch.mm(x, self.inherited)


class Everything(Base):
    def forward(self, x, e):
        x = F.linear(x, self.cast.float().to(x.dtype)) @ self.right + self.added
        x = torch.einsum("bk,kn->bn", x, self.letters) + self.position[0] * self.scale
        up, _ = self.pieces.chunk(2)
        first = self.local
        x = F.gelu(x, self.unknown)
        for (weight, _), other in zip(self.looped, [x @ w for w in self.comprehended], strict=True):
            x = x @ weight + other
        table = F.embedding(e, self.table) + torch.baddbmm(self.bias, x, self.batched)
        return torch.bmm(F.linear(x, up), first[e].transpose(0, 1)) + x.matmul(self.method.t()) + self.norm(table)


def test_factors_are_seen_through_views_casts_slices_and_names():
    expected = {
        "cast",
        "right",
        "letters",
        "pieces",
        "local",
        "method",
        "inherited",
        "looped",
        "comprehended",
        "batched",
    }
    assert multiplied(Everything) == expected


def test_a_class_without_source_says_nothing():
    namespace: dict = {}
    exec("class Hidden(Base):\n    def forward(self, x):\n        return x @ self.w", {"Base": Base}, namespace)
    assert multiplied(namespace["Hidden"]) is None


@pytest.mark.parametrize(
    ("module", "cls", "names"),
    [
        ("transformers.models.mixtral.modeling_mixtral", "MixtralTopKRouter", {"weight"}),
        ("transformers.models.mixtral.modeling_mixtral", "MixtralExperts", {"gate_up_proj", "down_proj"}),
        ("transformers.models.xlnet.modeling_xlnet", "XLNetRelativeAttention", {"q", "k", "v", "r", "o", "seg_embed"}),
    ],
)
def test_real_classes(module, cls, names):
    assert names <= set(multiplied(getattr(pytest.importorskip(module), cls)))

"""Parameters that are linear maps by themselves."""

import torch
from torch import nn

import noble_fx


def test_a_stacked_expert_weight_is_listed():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Parameter(torch.zeros(4, 16, 32))
            self.out = nn.Linear(16, 16)

    found = {site.fqn: site for site in noble_fx.sites(Experts(), rank=4)}
    assert found["down"].kind == "stacked parameter [4, a, b]"
    assert "no layer to carry a branch" in found["down"].reason


def test_the_projections_of_an_attention_are_listed_each():
    model = nn.Sequential(nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2, kdim=8, vdim=8))
    found = [site.fqn for site in noble_fx.sites(model, rank=2)]
    assert found == [
        "0.out_proj",
        "1.out_proj",
        "0.in_proj_weight",
        "1.q_proj_weight",
        "1.k_proj_weight",
        "1.v_proj_weight",
    ]


def test_why_a_product_is_eager_is_read_off_its_form():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.letters = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6, 6))
            self.stacked, self.conv = nn.Parameter(torch.randn(3, 6, 6)), nn.Conv1d(6, 6, 1)

        def forward(self, x):
            y = torch.einsum("bk,kn->bn", x @ self.plain, self.letters)
            y = torch.bmm(y.expand(3, *y.shape), self.stacked).sum(0)
            return self.conv(y.unsqueeze(-1)).squeeze(-1)

    x = torch.randn(4, 8)
    model = noble_fx.transform(Products(), rank=2, capture="export", example_inputs=(x,), select="all")
    assert {site.fqn: (site.selected, site.unfused) for site in noble_fx.sites(model)} == {
        "conv": (True, "a 1x1 convolution, whose channels are not the last dimension"),
        "plain": (True, ""),
        "letters": (True, "an einsum, whose features may be several axes"),
        "stacked": (True, "stacked experts, computed together"),
    }

"""Parameters that are linear maps by themselves."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError


class Bare(nn.Module):
    """Matrices that are multiplied with outside of any layer, and tensors that are not."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.right, self.table = nn.Parameter(torch.zeros(16, 16)), nn.Parameter(torch.zeros(16, 16))
        self.stacked, self.position = nn.Parameter(torch.zeros(4, 16, 32)), nn.Parameter(torch.zeros(4, 16, 32))
        self.listed = nn.ParameterList([nn.Parameter(torch.zeros(16, 16))])

    def forward(self, x):
        y = self.fc(x) @ self.right + self.table.mean() + self.position[0, :, :16]
        return torch.mm(y, self.listed[0]) + torch.stack([y @ w for w in (self.stacked[0], self.stacked[1])]).sum()


class OwnLinear(nn.Module):
    """PyTorch Geometric's Linear: no nn.Linear."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(16, 16)), nn.Parameter(torch.zeros(16))

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def test_what_the_source_multiplies_with_is_listed_and_nothing_else():
    found = {site.fqn: site for site in noble_fx.sites(nn.Sequential(Bare(), Bare()), rank=4)}
    assert [name for name in found if name.startswith("0.")] == ["0.fc", "0.right", "0.stacked", "0.listed.0"]
    assert [found[f"0.{name}"].kind for name in ("right", "stacked")] == [
        "bare parameter",
        "stacked parameter [4, a, b]",
    ]
    assert all("no layer to carry a branch" in site.reason for site in found.values() if not site.fqn.endswith("fc"))


def test_a_bare_router_is_called_one():
    class MixtralTopKRouter(OwnLinear):
        pass

    sites = noble_fx.sites(
        nn.ModuleList([nn.ModuleDict({"gate": MixtralTopKRouter(), "fc": nn.Linear(16, 16)})]), rank=4
    )
    assert sites[1].role == "router"
    assert sites[1].reason.startswith("the router of a mixture of experts; and a bare parameter")


def test_a_linear_layer_of_ones_own_is_never_no_layer():
    with pytest.raises(ConfigError, match=r"2 × a bare parameter.*export.*register_layer makes OwnLinear one") as error:
        noble_fx.transform(nn.Sequential(OwnLinear(), OwnLinear()), rank=4)
    assert "no linear layer" not in str(error.value)


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

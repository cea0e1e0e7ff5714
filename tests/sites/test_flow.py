"""Routers and heads in a traced graph."""

import pytest
import torch
from torch import Tensor, fx, nn

import noble_fx
from noble_fx.sites.flow import flow_roles


class Chosen(nn.Module):
    """Experts under names that say nothing, weighed by scores."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.scores = how, nn.Linear(16, 3)
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        if self.how == "topk":
            values, _ = torch.topk(scores.float(), 2, dim=-1)
            return (self.a(x) + self.b(x) + self.c(x)) * values.sum(-1, keepdim=True)
        w = scores.softmax(-1) if self.how == "softmax" else torch.sigmoid(scores)
        return w[..., 0:1] * self.a(x) + w[..., 1:2] * self.b(x) + w[..., 2:3] * self.c(x)


class Stack(nn.Module):
    """Two blocks and a last layer without a name."""

    def __init__(self, how: str = "topk", residual: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(Chosen(how) for _ in range(2))
        self.last, self.residual = nn.Linear(16, 16), residual

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x + self.last(x) if self.residual else self.last(x) / 2


@pytest.mark.parametrize("how", ["topk", "softmax", "sigmoid"])
def test_a_router_is_known_by_what_follows_it(how):
    sites = {site.fqn: site for site in noble_fx.sites(Stack(how), rank=2, select="all")}
    assert [name for name, site in sites.items() if site.role == "router"] == ["layers.0.scores", "layers.1.scores"]
    assert sites["layers.0.a"].selected
    assert sites["layers.0.scores"].reason == "the router of a mixture of experts"


def test_the_last_product_of_a_stack_is_its_head():
    assert {s.fqn: s.reason for s in noble_fx.sites(Stack(), rank=2, select="all")}["last"] == "an output head"
    residual = {s.fqn: s for s in noble_fx.sites(Stack(residual=True), rank=2, select="all")}
    assert residual["last"].selected


def test_a_model_without_blocks_has_no_head_by_flow():
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    assert "head" not in flow_roles(model, fx.symbolic_trace(model).graph).values()
    assert all(site.selected for site in noble_fx.sites(model, rank=4))


def test_what_gates_is_no_router():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.a(x).chunk(2, dim=-1)
            return self.b(x) * torch.sigmoid(self.c(left * torch.sigmoid(right)))

    model = Gated()
    assert "router" not in flow_roles(model, fx.symbolic_trace(model).graph).values()

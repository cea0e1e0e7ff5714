"""Which parameters a graph multiplies with: views, products, and the reasons why something is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.attach.attach import branch_paths, named_branches, site_name
from noble_fx.schema import LINEAR_GROUP
from tests.models import loud
from tests.zoo import Functional, features

ONES = torch.ones(7, dtype=torch.float64)
X = torch.linspace(-1, 1, 2 * 5 * 6, dtype=torch.float64).reshape(2, 5, 6)


class One(nn.Module):
    """One parameter `w` and a function of x and w."""

    def __init__(self, shape: tuple[int, ...], function):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.function = nn.Parameter(torch.randn(shape, dtype=torch.float64) * 0.3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w)


def rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


# name -> shape of w, the product, its layout, and the same in words: what the branches must add
CASES = {
    "linear": ((7, 6), F.linear, "[N, K]", lambda b, x: b[0](x)),
    "matmul": ((6, 7), torch.matmul, "[K, N]", lambda b, x: b[0](x)),
    "mm with t": ((7, 6), lambda x, w: torch.mm(rows(x), w.t()), "[N, K]", lambda b, x: b[0](rows(x))),
    "addmm": ((6, 7), lambda x, w: torch.addmm(ONES, rows(x), w), "[K, N]", lambda b, x: b[0](rows(x))),
    "slices": (
        (9, 6),
        lambda x, w: torch.cat([F.linear(x, w[6:]), F.linear(2 * x, w[:3])], -1),
        "[N, K]",
        lambda b, x: torch.cat([b[0](x)[..., 6:], b[0](2 * x)[..., :3]], -1),
    ),
    "split": (
        (9, 6),
        lambda x, w: torch.cat([F.linear(x, p) for p in w.split([2, 3, 4])], -1),
        "[N, K]",
        lambda b, x: b[0](x),
    ),
    "conv1d": (
        (7, 6, 1),
        lambda x, w: F.conv1d(x.transpose(1, 2), w),
        "[N, K, 1]",
        lambda b, x: b[0](x).transpose(1, 2),
    ),
    "einsum": ((6, 7), lambda x, w: torch.einsum("btk,kn->tbn", x, w), "[K, N]", lambda b, x: b[0](x).transpose(0, 1)),
    "einsum to heads": (
        (6, 2, 4),
        lambda x, w: torch.einsum("btc,chd->bhtd", x, w),
        "[K, N, N]",
        lambda b, x: b[0](x).unflatten(-1, (2, 4)).transpose(1, 2),
    ),
    "einsum from heads": (
        (2, 3, 7),
        lambda x, w: torch.einsum("bthd,hdc->btc", x.unflatten(-1, (2, 3)), w),
        "[K, K, N]",
        lambda b, x: b[0](x),
    ),
    "experts, bmm": (
        (2, 6, 7),
        torch.bmm,
        "[E, K, N]",
        lambda b, x: torch.stack([b[e](x[e]) for e in range(2)]),
    ),
    "experts, transposed": (
        (2, 7, 6),
        lambda x, w: torch.bmm(x, w.transpose(1, 2)),
        "[E, N, K]",
        lambda b, x: torch.stack([b[e](x[e]) for e in range(2)]),
    ),
    "experts, matmul": (
        (3, 6, 7),
        lambda x, w: x.unsqueeze(1) @ w,
        "[E, K, N]",
        lambda b, x: torch.stack([b[e](x) for e in range(3)], 1),
    ),
    "experts, einsum": (
        (3, 6, 7),
        lambda x, w: torch.einsum("btk,ekn->ebtn", x, w),
        "[E, K, N]",
        lambda b, x: torch.stack([b[e](x) for e in range(3)]),
    ),
    "experts, one by one": (
        (3, 7, 6),
        lambda x, w: F.linear(x, w[0]) + F.linear(2 * x, w[2]),
        "[E, N, K]",
        lambda b, x: b[0](x) + b[2](2 * x),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_branch_of_a_weight_follows_its_views(case):
    shape, function, layout, expected = CASES[case]
    model = One(shape, function)
    base = model(X)
    made = loud(noble_fx.transform(model, rank=2, select="all", capture="export", example_inputs=(X,)))
    (site,) = noble_fx.sites(made)
    branches = list(named_branches(made).values())
    assert site.layout == layout
    assert len(branches) == max(1, site.experts)
    assert site.params == sum(p.numel() for b in branches for p in b.parameters())
    torch.testing.assert_close(made(X), base + expected(branches, X))
    with noble_fx.disabled(made):
        assert torch.equal(made(X), base)


@pytest.mark.parametrize(
    ("shape", "function", "reason"),
    [
        ((6, 6), lambda x, w: x @ w + F.embedding(torch.tensor([1]), w).sum(), "read by aten.embedding as well"),
        ((6, 6), lambda x, w: x @ w + F.linear(x, w), "read in ways that do not agree"),
        ((9, 6), lambda x, w: F.linear(x[..., :3], w[:, :3]), "only a part of its input features"),
        ((6, 6), lambda x, w: torch.einsum("btk,kk->bt", x, w), "is no product of one input with one weight"),
    ],
    ids=["embedding", "both ways", "columns", "diagonal"],
)
def test_what_is_no_linear_map_has_a_reason(shape, function, reason):
    class Both(One):
        def __init__(self):
            super().__init__(shape, function)
            self.fc = nn.Linear(6, 6, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.fc(x))

    found = noble_fx.transform(Both(), rank=2, select="all", capture="export", example_inputs=(X,), dry_run=True)
    assert reason in next(site.reason for site in found if site.fqn == "w")


def test_grouped_rows_go_to_their_own_expert():
    from noble_fx.branches.experts import expert_branches
    from noble_fx.branches.noble import NobleBranch

    branches = [NobleBranch(6, 7, 2, noble_fx.NobleConfig(preset="reference")).double() for _ in range(3)]
    held, x = expert_branches(branches), X.flatten(0, 1)
    expected = torch.cat([branches[0](x[:4]), branches[2](x[4:])])
    torch.testing.assert_close(held(x, torch.tensor([4, 4, 10])), expected)


def test_names_of_branches():
    made = noble_fx.transform(Functional(), rank=2, select="all", capture="export", example_kwargs=features())
    paths = [path for site in noble_fx.sites(made) for path in branch_paths(site)]
    assert paths[0] == "noble.qkv"
    assert "noble.up.2" in paths
    assert [site_name(path) for path in paths] == list(named_branches(made))
    assert site_name("layers.0.attn.noble.in_proj_weight") == "layers.0.attn.in_proj_weight"
    assert {s.fqn: s.role for s in noble_fx.sites(made)}["qkv"] == "attention.qkv"


def test_the_slices_of_a_fused_qkv_are_one_group():
    made = noble_fx.transform(Functional(), rank=2, select="qkv", capture="export", example_kwargs=features())
    groups = [n for p in noble_fx.programs(made) for n in p.graph_module.graph.nodes if n.target is LINEAR_GROUP]
    assert [len(node.args[1]) for node in groups] == [3, 3]


def test_remove_takes_bare_branches_out():
    made = noble_fx.transform(Functional(), rank=2, select="all", capture="export", example_kwargs=features())
    noble_fx.remove(made)
    assert list(made.state_dict()) == list(Functional().state_dict())


def test_optimizer_groups_hold_every_branch_parameter():
    made = noble_fx.transform(Functional(), rank=2, select="all", capture="export", example_kwargs=features())
    held = {id(p) for group in noble_fx.param_groups(made, lr=1e-3) for p in group["params"]}
    assert held == {id(p) for p in made.parameters()}


def test_drawing_the_base_again():
    made = noble_fx.transform(
        Functional(), rank=2, select="all", capture="export", example_kwargs=features(), init_base=True, seed=0
    )
    assert abs(made.qkv.std().item() - 0.5 / 4) < 0.02

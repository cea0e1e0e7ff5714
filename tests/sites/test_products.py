"""Which parameters a graph multiplies with: views, products, and the reasons why something is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.attach.attach import branch_paths, named_branches, site_name
from noble_fx.errors import Refusal
from noble_fx.schema import LINEAR_GROUP
from noble_fx.sites.products import parse_einsum, product_of
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
    branched = loud(noble_fx.transform(model, rank=2, select="all", capture="export", example_inputs=(X,)))
    (site,) = noble_fx.sites(branched)
    branches = list(named_branches(branched).values())
    assert site.layout == layout
    assert len(branches) == max(1, site.experts)
    assert site.params == sum(p.numel() for b in branches for p in b.parameters())
    torch.testing.assert_close(branched(X), base + expected(branches, X))
    with noble_fx.disabled(branched):
        assert torch.equal(branched(X), base)


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

    sites = noble_fx.transform(Both(), rank=2, select="all", capture="export", example_inputs=(X,), dry_run=True)
    assert reason in next(site.reason for site in sites if site.fqn == "w")


def test_grouped_rows_go_to_their_own_expert():
    from noble_fx.branches.experts import expert_branches
    from noble_fx.branches.noble import NobleBranch

    branches = [NobleBranch(6, 7, 2, noble_fx.NobleConfig(preset="reference")).double() for _ in range(3)]
    experts, x = expert_branches(branches), X.flatten(0, 1)
    expected = torch.cat([branches[0](x[:4]), branches[2](x[4:])])
    torch.testing.assert_close(experts(x, torch.tensor([4, 4, 10])), expected)


def test_names_of_branches():
    branched = noble_fx.transform(Functional(), rank=2, select="all", capture="export", example_kwargs=features())
    paths = [path for site in noble_fx.sites(branched) for path in branch_paths(site)]
    assert paths[0] == "noble.qkv"
    assert "noble.up.2" in paths
    assert [site_name(path) for path in paths] == list(named_branches(branched))
    assert site_name("layers.0.attn.noble.in_proj_weight") == "layers.0.attn.in_proj_weight"
    assert {s.fqn: s.role for s in noble_fx.sites(branched)}["qkv"] == "attention.qkv"


def test_the_slices_of_a_fused_qkv_are_one_group():
    branched = noble_fx.transform(Functional(), rank=2, select="qkv", capture="export", example_kwargs=features())
    groups = [n for p in noble_fx.programs(branched) for n in p.graph_module.graph.nodes if n.target is LINEAR_GROUP]
    assert [len(node.args[1]) for node in groups] == [3, 3]


def test_remove_takes_bare_branches_out():
    branched = noble_fx.transform(Functional(), rank=2, select="all", capture="export", example_kwargs=features())
    noble_fx.remove(branched)
    assert list(branched.state_dict()) == list(Functional().state_dict())


def test_optimizer_groups_hold_every_branch_parameter():
    branched = noble_fx.transform(Functional(), rank=2, select="all", capture="export", example_kwargs=features())
    grouped = {id(p) for group in noble_fx.param_groups(branched, lr=1e-3) for p in group["params"]}
    assert grouped == {id(p) for p in branched.parameters()}


def test_drawing_the_base_again():
    branched = noble_fx.transform(
        Functional(), rank=2, select="all", capture="export", example_kwargs=features(), init_base=True, seed=0
    )
    assert abs(branched.qkv.std().item() - 0.5 / 4) < 0.02


# --- one product at a time -------------------------------------------------------------------------------------------

aten = torch.ops.aten


def read(shape: tuple[int, ...], function):
    """What `product_of` says of the last node that `function` of x and w makes."""
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.get_attr("w")
    node = function(lambda target, *args, **kwargs: graph.call_function(target, args, kwargs), x, w)
    return product_of(node, {"w": shape}.get)


# name -> shape of w, the product, the positions of K, N and E
PRODUCTS = {
    "linear": ((7, 6), lambda call, x, w: call(aten.linear.default, x, w), (1,), (0,), None),
    "linear by name": ((7, 6), lambda call, x, w: call(F.linear, input=x, weight=w), (1,), (0,), None),
    "mm": ((6, 7), lambda call, x, w: call(aten.mm.default, x, w), (0,), (1,), None),
    "addmm": ((6, 7), lambda call, x, w: call(aten.addmm.default, x, x, w), (0,), (1,), None),
    "matmul": ((6, 7), lambda call, x, w: call(aten.matmul.default, x, other=w), (0,), (1,), None),
    "matmul, experts": ((3, 6, 7), lambda call, x, w: call(aten.matmul.default, x, w), (1,), (2,), 0),
    "bmm": ((3, 6, 7), lambda call, x, w: call(aten.bmm.default, x, w), (1,), (2,), 0),
    "baddbmm": ((3, 6, 7), lambda call, x, w: call(aten.baddbmm.default, x, x, w, beta=2), (1,), (2,), 0),
    "grouped": ((3, 6, 7), lambda call, x, w: call(aten._grouped_mm.default, x, w, offs=x), (1,), (2,), 0),
    "conv1d": ((7, 6, 1), lambda call, x, w: call(aten.conv1d.default, x, w), (1,), (0,), None),
    "conv3d, strided": (
        (7, 6, 1, 1, 1),
        lambda call, x, w: call(aten.conv3d.default, x, w, stride=[2, 1, 1]),
        (1,), (0,), None,
    ),
    "einsum": ((6, 7), lambda call, x, w: call(aten.einsum.default, "bk,kn->bn", [x, w]), (0,), (1,), None),
    "einsum, weight first": (
        (7, 6),
        lambda call, x, w: call(aten.einsum.default, "nk,bk->bn", [w, x]),
        (1,), (0,), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product(name):
    shape, function, inner, outer, expert = PRODUCTS[name]
    product = read(shape, function)
    assert (product.inner, product.outer, product.expert) == (inner, outer, expert)
    assert (product.x.name, product.weight.name, product.view.parameter) == ("x", "w", "w")


def test_the_bias_of_a_product():
    biases = {
        name: read(shape, function).bias
        for name, (shape, function) in {
            "linear": ((7, 6), lambda call, x, w: call(aten.linear.default, x, w, x)),
            "linear by name": ((7, 6), lambda call, x, w: call(F.linear, x, w, bias=x)),
            "addmm": ((6, 7), lambda call, x, w: call(aten.addmm.default, x, x, w)),
            "conv": ((7, 6, 1), lambda call, x, w: call(aten.conv1d.default, x, w, bias=x)),
            "mm": ((6, 7), lambda call, x, w: call(aten.mm.default, x, w)),
            "baddbmm": ((3, 6, 7), lambda call, x, w: call(aten.baddbmm.default, x, x, w)),
        }.items()
    }
    assert {name: getattr(bias, "name", None) for name, bias in biases.items()} == {
        "linear": "x", "linear by name": "x", "addmm": "x", "conv": "x", "mm": None, "baddbmm": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "function", "reason"),
    [
        ((6, 7), lambda call, x, w: call(aten.mm.default, w, x), "multiplies from the left"),
        ((6, 7), lambda call, x, w: call(aten.addmm.default, x, x, w, beta=2), "addmm with factors of its own"),
        ((6,), lambda call, x, w: call(aten.matmul.default, x, w), "a product with a vector"),
        ((3, 6, 7), lambda call, x, w: call(aten.baddbmm.default, x, x, w, alpha=2), "factors of its own"),
        ((3, 6, 7), lambda call, x, w: call(aten._grouped_mm.default, x, w, x, x), "factors of its own"),
        ((6, 7), lambda call, x, w: call(aten._grouped_mm.default, x, w, x), "of an unusual shape"),
        ((7, 6, 3), lambda call, x, w: call(aten.conv1d.default, x, w), "a convolution over 3 positions, not 1 × 1"),
        ((7, 6, 1), lambda call, x, w: call(aten.conv1d.default, x, w, groups=2), "groups or padding"),
        ((7, 6, 1), lambda call, x, w: call(aten.conv1d.default, x, w, None, [1], [1]), "groups or padding"),
        ((7, 6), lambda call, x, w: call(aten.einsum.default, "bk,nk", [x, w]), "no product of one input"),
    ],
)
def test_an_unusual_product_is_refused_with_its_reason(shape, function, reason):
    refusal = read(shape, function)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


@pytest.mark.parametrize(
    "function",
    [
        lambda call, x, w: x,
        lambda call, x, w: call(aten.relu.default, w),
        lambda call, x, w: call(aten.mm.default, x, x),
        lambda call, x, w: call(aten.linear.default, w, x),
        lambda call, x, w: call(aten.bmm.default, x, x),
        lambda call, x, w: call(aten.conv1d.default, x, x),
        lambda call, x, w: call(aten.einsum.default, "bk,kn->bn", [x, x]),
    ],
)
def test_what_is_no_product_with_a_parameter(function):
    assert read((6, 7), function) is None


@pytest.mark.parametrize(
    ("equation", "letters"),
    [
        ("bk,kn->bn", ("bk", "kn", "bn")),
        (" b k , k n -> b n ", ("bk", "kn", "bn")),
        ("k,k->", ("k", "k", "")),
        ("bk,kn", None),
        ("...k,kn->...n", None),
        ("bk->b", None),
        ("a,b,c->abc", None),
        ("bb,bn->bn", None),
        ("bk,kn->bm", None),
    ],
)
def test_equations(equation, letters):
    assert parse_einsum(equation) == letters

"""The rules on exported products: what each rewrites, what it leaves with a reason, and that a second run does nothing.

The numbers of every form are compared in `tests/test_weights.py`.
"""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn

from noble_fx import NobleBranch, NobleConfig
from noble_fx.branches.experts import BranchGroup, expert_branches
from noble_fx.passes.expose.expose_product import expose_product
from noble_fx.passes.insert.insert_branch import insert_branch
from noble_fx.passes.insert.insert_channel_branch import insert_channel_branch
from noble_fx.passes.insert.insert_einsum_branch import insert_einsum_branch
from noble_fx.passes.insert.insert_expert_branch import insert_expert_branch
from noble_fx.passes.rule import Rule, run_passes
from noble_fx.schema import LINEAR

aten = torch.ops.aten


def product(target, shape: tuple[int, ...], *args, experts: int = 0, branch: bool = True) -> fx.GraphModule:
    """A graph of one product; in `args`, "x" and "w" stand for the input and the weight."""
    root = nn.Module()
    root.w = nn.Parameter(torch.randn(shape))
    if branch:
        made = [NobleBranch(6, 7, 2, NobleConfig()) for _ in range(experts or 1)]
        root.noble = BranchGroup({"w": expert_branches(made) if experts else made[0]})
    graph = fx.Graph()
    known = {"x": graph.placeholder("x"), "w": graph.get_attr("w")}

    def filled(value):
        return [filled(v) for v in value] if isinstance(value, list) else known.get(value, value)

    node = graph.call_function(target, tuple(filled(a) if isinstance(a, str | list) else a for a in args))
    node.meta["val"] = "kept"
    graph.output(node)
    module = fx.GraphModule(root, graph)
    module.noble = getattr(root, "noble", nn.Module())
    return module


def targets(module: fx.GraphModule) -> list:
    return [n.target for n in module.graph.nodes if n.op not in ("placeholder", "get_attr", "output")]


LINEARS = {
    "linear": (aten.linear.default, (7, 6), "x", "w"),
    "mm": (aten.mm.default, (6, 7), "x", "w"),
    "matmul": (aten.matmul.default, (6, 7), "x", "w"),
    "addmm": (aten.addmm.default, (6, 7), None, "x", "w"),
}


@pytest.mark.parametrize("name", LINEARS)
def test_products_become_linear_then_one_operator_each(name):
    from noble_fx.passes.fuse.fuse_branch import fuse_branch

    module = product(*LINEARS[name])
    module.noble["w"].unfused = ""
    steps = run_passes(module, (expose_product, insert_branch, fuse_branch))
    assert [step.rule for step in steps if not step.skipped] == ["expose_product", "insert_branch", "fuse_branch"]
    assert targets(module)[-1] is LINEAR
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    assert output.args[0].meta["val"] == "kept"


INSERTED = {
    "conv": (insert_channel_branch, 0, (aten.conv2d.default, (7, 6, 1, 1), "x", "w")),
    "bmm": (insert_expert_branch, 3, (aten.bmm.default, (3, 6, 7), "x", "w")),
    "matmul": (insert_expert_branch, 3, (aten.matmul.default, (3, 6, 7), "x", "w")),
    "einsum": (insert_einsum_branch, 0, (aten.einsum.default, (6, 7), "bk,kn->bn", ["x", "w"])),
}


@pytest.mark.parametrize("name", INSERTED)
def test_a_branch_is_inserted_once(name):
    one, experts, arguments = INSERTED[name]
    module = product(*arguments, experts=experts)
    (step,) = run_passes(module, (one,))
    assert not step.skipped
    assert targets(module).count("noble.w") == 1
    assert operator.add in targets(module)
    (again,) = run_passes(module, (one,))
    assert again.skipped == "has its branch already"


@pytest.mark.parametrize(
    ("one", "arguments"),
    [(expose_product, LINEARS[n]) for n in LINEARS] + [(r, a) for r, _, a in INSERTED.values()],
)
def test_a_weight_without_a_branch_is_left_alone(one: Rule, arguments):
    module = product(*arguments, branch=False)
    (step,) = run_passes(module, (one,))
    assert step.skipped == "not selected"


@pytest.mark.parametrize(
    ("one", "arguments", "reason"),
    [
        (insert_channel_branch, (aten.conv2d.default, (7, 6, 3, 3), "x", "w"), "3 × 3 positions"),
        (insert_channel_branch, (aten.conv2d.default, (7, 6, 1, 1), "x", "w", None, 1, 1), "groups or padding"),
        (insert_einsum_branch, (aten.einsum.default, (6, 7), "bk,kk->b", ["x", "w"]), "no product of one input"),
        (insert_einsum_branch, (aten.einsum.default, (6, 7), "bk,kn->bkn", ["x", "w"]), "no linear map"),
        (expose_product, (aten.mm.default, (6, 7), "w", "x"), "multiplies from the left"),
    ],
)
def test_what_is_no_linear_map_is_skipped_with_its_reason(one: Rule, arguments, reason):
    (step,) = run_passes(product(*arguments), (one,))
    assert reason in step.skipped


def test_every_rule_states_its_law():
    for one in (expose_product, insert_channel_branch, insert_expert_branch, insert_einsum_branch):
        assert "->" in one.rewrite

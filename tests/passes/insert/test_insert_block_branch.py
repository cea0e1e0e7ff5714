"""A branch is put where a graph shows its place."""

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import around, traced
from noble_fx.passes.insert.insert_block_branch import insert_block_branch
from noble_fx.passes.rule import run_passes
from noble_fx.schema import BLOCK_BRANCH


def test_rewrite():
    check_rewrite(insert_block_branch)


def test_a_block_without_a_branch_is_left():
    graph_module = traced(lambda m, x: BLOCK_BRANCH(x, "other"), around())
    (step,) = run_passes(graph_module, [insert_block_branch])
    assert step.skipped == "not selected"

"""Branches of stacked weights: together, one by one, and by rows sorted by expert."""

from typing import ClassVar

import pytest
import torch

from noble_fx import NobleBranch, NobleConfig
from noble_fx.branches.experts import ExpertBranches, StackedBranches, expert_branches, may_be_one
from noble_fx.branches.grouped import Gathered
from tests.branches.test_kinds import Softsign


def branches(preset: str = "paper", kind: type = NobleBranch) -> list:
    torch.manual_seed(0)
    return [kind(8, 6, 3, NobleConfig(rank=3, preset=preset)).double() for _ in range(4)]


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_together_they_give_what_each_gives(preset):
    each = branches(preset)
    together, x = expert_branches(each), torch.randn(2, 4, 5, 8, dtype=torch.float64)
    assert type(together) is ExpertBranches
    expected = torch.stack([branch(x[:, e]) for e, branch in enumerate(each)], dim=1)
    torch.testing.assert_close(together(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(StackedBranches(each)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [NobleBranch, Softsign])
def test_rows_sorted_by_expert_go_to_their_own(kind):
    each = branches(kind=kind)
    x, offsets = torch.randn(9, 8, dtype=torch.float64), torch.tensor([2, 2, 6, 9])
    expected = torch.cat([each[0](x[:2]), each[2](x[2:6]), each[3](x[6:])])
    torch.testing.assert_close(expert_branches(each)(x, offsets), expected, rtol=1e-12, atol=1e-12)


def test_a_kind_of_ones_own_is_run_one_by_one():
    assert type(expert_branches(branches(kind=Softsign))) is StackedBranches
    mixed = [*branches(), *branches(kind=Softsign)]
    assert type(expert_branches(mixed)) is StackedBranches


def test_they_are_given_in_order():
    each = branches()
    assert list(expert_branches(each).branches()) == list(each)


def test_they_are_off_where_any_is():
    stacked = expert_branches(branches())
    assert stacked.enabled
    stacked[1].enabled = False
    assert not stacked.enabled


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(9, 8, dtype=torch.float64), torch.tensor([2, 2, 6, 9])


def looped(each: list, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([each[0](x[:2]), each[2](x[2:6]), each[3](x[6:])])


@pytest.mark.parametrize("kind", [NobleBranch, Softsign])
def test_rows_in_any_order(kind):
    each, (x, _) = branches(kind=kind), rows()
    order = torch.randperm(9)
    experts = torch.tensor([0, 0, 2, 2, 2, 2, 3, 3, 3])[order]
    found = expert_branches(each)(x[order], Gathered(experts))
    torch.testing.assert_close(found, looped(each, x)[order], rtol=1e-12, atol=1e-12)


def test_an_expert_without_rows_has_gradients_of_zero_as_where_one_graph_runs_all():
    each, (x, offsets) = branches(), rows()
    expert_branches(each)(x, offsets).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for e in (0, 2, 3) for p in each[e].parameters())
    assert all(p.grad is not None and not p.grad.any() for p in each[1].parameters())


def test_gradients_are_those_of_the_loop():
    each, (x, offsets) = branches("reference"), rows()
    used = [p for e in (0, 2, 3) for p in each[e].parameters()]
    found = torch.autograd.grad(expert_branches(each)(x, offsets).square().sum(), used)
    expected = torch.autograd.grad(looped(each, x).square().sum(), used)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_what_hangs_on_one_branch_is_not_passed_by():
    each, (x, offsets) = branches(), rows()
    each[2].register_forward_hook(lambda module, inputs, y: y + 1)
    torch.testing.assert_close(expert_branches(each)(x, offsets), looped(each, x), rtol=1e-12, atol=1e-12)
    dense = torch.randn(4, 5, 8, dtype=torch.float64)
    expected = torch.stack([branch(dense[e]) for e, branch in enumerate(each)])
    torch.testing.assert_close(expert_branches(each)(dense), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [NobleBranch, Softsign])
def test_the_same_rows_for_every_expert(kind):
    each, x = branches(kind=kind), torch.randn(1, 5, 8, dtype=torch.float64)
    expected = torch.stack([branch(x[0]) for branch in each])
    torch.testing.assert_close(expert_branches(each)(x), expected, rtol=1e-12, atol=1e-12)


def test_few_rows_read_the_branches_of_their_experts_alone(monkeypatch):
    each, x = branches(), torch.randn(3, 8, dtype=torch.float64)
    together, offsets = expert_branches(each), torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    read = []
    monkeypatch.setattr(ExpertBranches, "_together", record(ExpertBranches._together, read))
    expected = torch.cat([each[1](x[:2]), each[3](x[2:])])
    with torch.no_grad():
        torch.testing.assert_close(together(x, offsets), expected, rtol=1e-12, atol=1e-12)
        assert together(x[:0], torch.zeros(4, dtype=torch.int32)).shape == (0, 6)
    torch.testing.assert_close(together(x, offsets), expected, rtol=1e-12, atol=1e-12)
    assert read == [2, 1, 4], "all where somebody may ask for gradients"


def record(function, counts: list):
    def called(branches, x, groups):
        counts.append(len(branches))
        return function(branches, x, groups)

    return staticmethod(called)


def test_a_kind_of_ones_own_runs_over_its_rows_alone():
    class Counting(Softsign):
        seen: ClassVar[list] = []

        def forward(self, x):
            self.seen.append(tuple(x.shape))
            return super().forward(x)

    each, (x, offsets) = branches(kind=Counting), rows()
    expert_branches(each)(x, offsets)
    assert Counting.seen == [(2, 8), (4, 8), (3, 8)]
    assert expert_branches(each)(x[:0], torch.zeros(4, dtype=torch.int64)).shape == (0, 6)


@pytest.mark.parametrize("kind", [NobleBranch, Softsign])
def test_exported_and_under_a_transform_of_functions(kind):
    each, (x, offsets) = branches(kind=kind), rows()
    stacked = expert_branches(each)
    program = torch.export.export(stacked, (x, offsets), strict=False)
    torch.testing.assert_close(program.module()(x, offsets), looped(each, x), rtol=1e-12, atol=1e-12)
    assert not any("noble_fx" in str(node.target) for node in program.graph.nodes)
    _, tangent = torch.func.jvp(lambda x: stacked(x, offsets), (x,), (torch.ones_like(x),))
    expected = torch.func.jvp(lambda x: looped(each, x), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=1e-12)


def test_folded_branches_are_computed_together_too():
    each, (x, offsets) = branches(), rows()
    expected = looped(each, x)
    assert [branch.fold() for branch in each] == [None] * 4
    assert may_be_one(each)
    torch.testing.assert_close(expert_branches(each)(x, offsets), expected, rtol=1e-10, atol=1e-10)

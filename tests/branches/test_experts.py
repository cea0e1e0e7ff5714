"""Branches of stacked weights: together, one by one, and by rows sorted by expert."""

import pytest
import torch

from noble_fx import NobleBranch, NobleConfig
from noble_fx.branches.experts import ExpertBranches, StackedBranches, expert_branches
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

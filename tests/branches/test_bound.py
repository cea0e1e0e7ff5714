"""What the operator is given of a branch, and when it is given nothing."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import NobleBranch, NobleConfig

X, SHAPE = torch.randn(3, 8), (6, 8)


def branch_of(**settings: object) -> NobleBranch:
    branch = NobleBranch(8, 6, 2, NobleConfig(rank=2, **settings))
    branch.prepare()
    return branch


def test_its_tensors_in_the_order_of_the_operator():
    branch = branch_of(preset="reference")
    found = branch.bound.operands(branch, X, SHAPE)
    expected = [branch.down, branch.down_bias, branch.up, None, *branch.act.parameters()]
    assert list(map(id, found)) == list(map(id, expected))


def test_a_folded_branch_has_a_bias_of_u():
    branch = branch_of(act="silu_scale", preset="reference")
    branch.fold()
    found = branch.bound.operands(branch, X, SHAPE)
    assert found[2] is branch.up
    assert len(found) == 4 + len(branch.act_tensors())


def test_nothing_where_a_tensor_is_gone_or_no_plain_one():
    for damage in (
        lambda branch: branch._parameters.pop("up"),
        lambda branch: branch._parameters.update(up=branch.up.detach().as_subclass(type("Sub", (torch.Tensor,), {}))),
        lambda branch: branch._parameters.update(up=nn.Parameter(torch.randn(6, 3))),
        lambda branch: branch._parameters.update(down=nn.Parameter(torch.randn(2, 9))),
    ):
        branch = branch_of()
        damage(branch)
        assert branch.bound.operands(branch, X, SHAPE) is None


def test_nothing_beside_a_weight_or_an_input_of_another_shape():
    branch = branch_of()
    assert branch.bound.operands(branch, X, SHAPE) is not None
    assert branch.bound.operands(branch, X, (7, 8)) is None
    assert branch.bound.operands(branch, torch.randn(3, 7), SHAPE) is None
    assert branch.bound.operands(branch, torch.tensor(1.0), SHAPE) is None


def test_an_eager_branch_is_not_bound():
    branch = branch_of()
    branch.prepare("its place says no")
    assert branch.bound is None


def test_nothing_for_a_copy_that_shares_it():
    branch = branch_of()
    replica = branch._replicate_for_data_parallel()
    assert replica.bound is branch.bound
    assert branch.bound.operands(replica, X, SHAPE) is None
    assert branch.bound.operands(branch, X, SHAPE) is not None


@pytest.mark.parametrize(("preset", "has"), [("paper", False), ("reference", True)])
def test_it_says_whether_there_is_a_d(preset, has):
    (layer,) = noble_fx.transform(torch.nn.Sequential(torch.nn.Linear(8, 8)), rank=2, preset=preset)
    assert layer.noble.bound.has_down_bias is has

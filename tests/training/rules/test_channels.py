"""How σ of a running model is given masks or gates, and back."""

import pytest
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.branches.masks import bare, masked
from noble_fx.errors import Refusal
from noble_fx.training.changing.running import running
from noble_fx.training.rules.channels import (
    asked,
    branches_of,
    check_silent,
    checked_rank,
    gate,
    masks,
    share,
    with_places,
    without_places,
)
from tests.models import tiny, transformed


def masking(branch, act):
    return masked(act, branch.rank, "none", branch.up)


@pytest.mark.parametrize("widest", [1, 5, 8, 64])
def test_a_share_is_whole_at_the_top_and_never_nothing(widest):
    for rank in range(1, widest + 1):
        shares = [share(count, widest, rank) for count in range(1, widest + 1)]
        assert shares == sorted(shares)
        assert shares[0] >= 1
        assert shares[-1] == rank
    assert share(3, 8, 8) == 3


def test_there_and_back():
    model = transformed()
    acts = {name: branch.act for name, branch in branches_of(running(model))}
    branches = with_places(without_places(model), masking, "masked")
    assert [len(masks(branch)) for branch in branches] == [2] * 12
    assert all(gate(branch) is None for branch in branches)
    with pytest.raises(ConfigError, match=r"σ of the branch at 'blocks\.0\.q_proj\.noble' has masks or gates"):
        without_places(model)
    with asked(branches, 1, 4), asked(branches, 2, 4):
        assert masks(branches[0])[0].mask.tolist() == [1, 1, 0, 0]
    assert masks(branches[0])[0].mask.tolist() == [1, 1, 1, 1]
    with_places(running(model), lambda branch, act: bare(act), "bare")
    assert {name: list(branch.act.state_dict()) for name, branch in branches_of(running(model))} == {
        name: list(act.state_dict()) for name, act in acts.items()
    }


def test_a_refusal_of_the_last_branch_leaves_the_first_as_it_was():
    model = transformed()
    last = [branch for _, branch in branches_of(running(model))][-1]
    acts = [branch.act for _, branch in branches_of(running(model))]

    def change(branch, act):
        return Refusal("not this one") if branch is last else masking(branch, act)

    with pytest.raises(ConfigError, match="cannot be tried: not this one"):
        with_places(running(model), change, "tried")
    assert all(branch.act is act for (_, branch), act in zip(branches_of(running(model)), acts, strict=True))


def test_a_sigma_that_mixes_its_channels_is_not_silent():
    model = noble_fx.transform(tiny(), rank=4, act=lambda rank: nn.Softmax(-1))
    answer = check_silent(model.blocks[0].fc1.noble)
    assert isinstance(answer, Refusal)
    assert check_silent(transformed().blocks[0].fc1.noble) is None


@pytest.mark.parametrize("rank", [0, 9, 2.0, True, "4"])
def test_a_rank_that_is_none(rank):
    with pytest.raises(ConfigError, match="must be a number from 1 to 8"):
        checked_rank(rank, 8, "rank")


def test_a_branch_without_values():
    model = noble_fx.transform(tiny(), rank=4)
    with pytest.raises(ConfigError, match="on the meta device"):
        without_places(model.to("meta"))


@pytest.mark.parametrize("act", ["cosnet", "cos"])
def test_other_verbs_say_who_is_in_the_way(act):
    model = transformed(act=act)
    with_places(without_places(model), masking, "masked")
    with pytest.raises(ConfigError, match="masks or gates of a training rule"):
        noble_fx.set_rank(model, 2)
    if act == "cos":
        with pytest.raises(ConfigError, match="masks or gates of a training rule"):
            noble_fx.reset_branches(model)

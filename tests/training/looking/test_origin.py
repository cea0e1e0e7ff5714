"""How far ω and φ are from where they started."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import noble_fx
from noble_fx.training.looking.origin import ROLES, moved
from noble_fx.transform import named_branches
from tests.models import loud, tiny
from tests.one_rank import fsdp2, one_rank


def model_of(seed):
    return noble_fx.transform(tiny(), rank=4, seed=seed)


def distances(model):
    return [difference.abs().max().item() for b in named_branches(model).values() for _, difference in moved(b)]


def shift(model, by=0.25):
    with torch.no_grad():
        for branch in named_branches(model).values():
            for role, parameter, _ in branch.parameter_roles():
                if role in ROLES:
                    parameter += by
    return model


def test_a_seed_tells_where_they_were_drawn_however_late_it_is_asked():
    model = model_of(seed=7)
    state = torch.random.get_rng_state()
    assert distances(copy.deepcopy(model)) == [0] * 48
    assert distances(shift(model)) == pytest.approx([0.25] * 48)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_a_seed_it_counts_from_the_first_time_and_copies_remember():
    model = shift(model_of(seed=None))
    assert distances(model) == [0] * 48
    for later in (shift(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert distances(later) == pytest.approx([0.25] * 48)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rounding_is_no_movement(dtype):
    assert distances(model_of(seed=1).to(dtype)) == [0] * 48


@pytest.mark.parametrize("seed", [None, 3])
def test_what_is_drawn_again_starts_again(seed):
    model = model_of(seed)
    distances(model)
    assert distances(noble_fx.reset_branches(shift(model))) == [0] * 48


def test_a_part_that_became_a_model_of_its_own_and_was_drawn_again():
    part = model_of(seed=3).blocks[1]
    assert distances(part) == [0] * 24
    assert distances(noble_fx.reset_branches(shift(part))) == [0] * 24  # by its own names now


def test_a_head_that_was_made_longer():
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=4, select="all", seed=0)
    model[0].noble.out_features = 12  # as `resize_token_embeddings` leaves it
    assert distances(model) == [0] * 4


def test_saved_and_loaded(tmp_path):
    noble_fx.save(shift(loud(model_of(seed=5))), tmp_path / "saved")
    assert distances(noble_fx.load(tiny(), tmp_path / "saved")) == pytest.approx([0.25] * 48)


def test_a_sharded_model():
    with one_rank() as mesh:
        model = fsdp2(shift(model_of(seed=2)), mesh)
        assert distances(model) == pytest.approx([0.25] * 48)


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def test_a_parametrized_frequency_counts_from_the_first_time():
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=4, select="all", seed=0)
    parametrize.register_parametrization(model[0].noble.act.first, "frequency", Half())
    assert distances(model) == [0] * 4


def test_a_folded_branch_and_a_sigma_without_have_none():
    assert distances(noble_fx.fold(model_of(seed=0))) == []
    assert distances(noble_fx.transform(tiny(), rank=4, act="gelu", seed=0)) == []

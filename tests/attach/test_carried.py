"""The sites of a model with branches: as they were chosen, under the names of today."""

import copy
import pickle

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import NobleLinear
from noble_fx.attach.carried import ADDED, BY_HAND, NOT_BY_HAND, REPLACED, carried_sites
from noble_fx.sites.find import find_maps
from tests.models import Tiny, tiny


def carried(model: nn.Module) -> dict:
    return {site.fqn: site for site in carried_sites(model, find_maps(model))}


@pytest.fixture
def model() -> Tiny:
    return noble_fx.transform(tiny(), rank=4, exclude="v_proj")


def test_what_was_chosen_is_read_and_not_chosen_again():
    asked = []

    def select(site):
        asked.append(site.fqn)
        return site.role.startswith("ffn")

    before = noble_fx.sites(tiny(), rank=4, select=select)
    model = noble_fx.transform(tiny(), rank=4, select=select)
    count = len(asked)
    assert carried(model) == {site.fqn: site for site in before}
    assert len(asked) == count


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_knows_why(model, again):
    assert carried(again(model)) == carried(model)


def test_a_wrapped_model_and_a_part_of_one_know_why(model):
    whole = carried(model)
    wrapped = nn.ModuleDict({"module": model})
    assert carried(wrapped) == {f"module.{n}": s.renamed("", "module.") for n, s in whole.items()}
    part = carried(model.blocks[1])
    assert part["v_proj"].reason == "matches exclude='v_proj'"
    assert part["fc1"].reason == "in a repeated block"
    assert set(part) == {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}


def test_what_was_changed_since_shows(model):
    model.blocks[0].fc1 = nn.Linear(16, 32)
    model.extra = nn.Linear(16, 16)
    found = carried(model)
    assert (found["blocks.0.fc1"].selected, found["blocks.0.fc1"].reason) == (False, REPLACED)
    assert found["extra"].reason == ADDED


def test_layers_built_by_hand_have_no_choice_behind_them():
    found = carried(nn.Sequential(NobleLinear.build(8, 8, rank=2), nn.Linear(8, 8)))
    assert (found["0"].selected, found["0"].reason, found["0"].rank) == (True, BY_HAND, 2)
    assert (found["1"].selected, found["1"].reason) == (False, NOT_BY_HAND)


def test_a_layer_that_the_model_goes_past_is_said_to_be(model):
    layer = model.blocks[0].fc1
    (x,) = (torch.randn(2, 16),)
    nn.functional.linear(x, layer.weight).sum().backward()
    assert "without effect" in carried(model)["blocks.0.fc1"].reason
    layer(x).sum().backward()
    assert "without effect" not in carried(model)["blocks.0.fc1"].reason

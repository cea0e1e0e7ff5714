"""Sites with a branch, by the user's own names."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.looking.places import names_by_holder, places
from tests.models import tiny, transformed


def test_every_site_by_the_name_that_sites_gives_it():
    model = transformed("modules")
    assert [place.site for place in places(model)] == [site.fqn for site in noble_fx.sites(model) if site.selected]
    assert names_by_holder(places(model))[id(model.blocks[0].fc1.noble)] == "blocks.0.fc1"


def test_a_wrapper_adds_nothing_to_a_name():
    model = transformed("modules")
    expected = [place.site for place in places(model)]
    assert [place.site for place in places(torch.compile(model))] == expected
    assert [place.site for place in places(torch.optim.swa_utils.AveragedModel(model))] == expected


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, x):
        return torch.bmm(x, self.w)


def test_stacked_experts_are_one_site():
    model = noble_fx.transform(Experts(), rank=2, select="all", capture="export", example_inputs=torch.randn(3, 5, 8))
    (place,) = places(model)
    assert place.site == "w"
    assert place.holder is model.noble["w"]
    assert place.branches == tuple(model.noble["w"])


@pytest.mark.parametrize("name", ["total", "lr", "fine"])
def test_a_layer_that_is_called_as_a_key_is_gets_another_name(name):
    model = nn.Module()
    model.add_module(name, nn.Linear(8, 8))
    model = noble_fx.transform(model, rank=2, select="all")
    assert [place.site for place in places(model)] == [name if name == "fine" else f"{name}_"]


def test_a_model_that_is_one_layer_has_a_name():
    (place,) = places(noble_fx.transform(nn.Linear(8, 8), rank=2, select="all"))
    assert place.site == "model"


@pytest.mark.parametrize(("model", "message"), [(tiny(), "call noble_fx.transform first"), (3, "takes an nn.Module")])
def test_nothing_to_look_at_is_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        places(model)

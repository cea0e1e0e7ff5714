"""Branches that another tool took along are missed; what the user took out or cut off is not."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CheckpointError, NobleLinear
from noble_fx.attach.gone import forget_choice, made_choice, sites_gone, told_gone
from tests.models import Tiny, tiny


def made(**settings) -> Tiny:
    return noble_fx.transform(tiny(layers=3), rank=2, seed=0, select="fc[12]", **settings)


def convert(model: nn.Module, only: str = "") -> None:
    """What a tool does that knows nothing of branches: a new layer over a weight of its own."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NobleLinear) and only in name:
            new = nn.Linear(module.in_features, module.out_features)
            new.weight.data.copy_(module.weight)
            model.set_submodule(name, new)


def test_they_are_named_with_what_is_in_their_place():
    model = made()
    assert told_gone(model) == ""
    convert(model, "blocks.1")
    assert set(sites_gone(model)) == {"blocks.1.fc1", "blocks.1.fc2"}
    text = told_gone(model)
    assert text.startswith("2 of 6 branches that noble_fx.transform made are gone")
    assert "'blocks.1.fc1' is a Linear now" in text


def test_param_groups_explain_and_save_say_it(tmp_path):
    model = made()
    convert(model, "blocks.1")
    with pytest.warns(UserWarning, match="2 of 6 branches"):
        noble_fx.param_groups(model, lr=1e-3)
    assert "gone: 2 of 6 branches" in str(noble_fx.explain(model))
    with pytest.raises(CheckpointError, match=r"2 of 6 branches .*remove_branches"):
        noble_fx.save(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_they_say_it_too_where_none_is_left(tmp_path):
    model = made()
    convert(model)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.compile(model)):
        with pytest.warns(UserWarning, match=r"6 of 6 branches .* and 3 more\..*noble_fx.remove\(model\)"):
            noble_fx.param_groups(one, lr=1e-3)
        with pytest.raises(CheckpointError, match="6 of 6 branches"):
            noble_fx.save(one, tmp_path / "folder")


@pytest.mark.parametrize("wrapped", [nn.Sequential, lambda model: nn.ModuleDict({"model": model}), torch.compile])
def test_inside_of_something_else_they_go_by_the_names_of_today(wrapped):
    model = made()
    convert(model, "blocks.1.fc1")
    (name,) = sites_gone(wrapped(model))
    assert name in ("0.blocks.1.fc1", "model.blocks.1.fc1", "blocks.1.fc1")
    assert set(sites_gone(model.blocks)) == {"1.fc1"}
    assert set(sites_gone(model.blocks[1])) == {"fc1"}
    assert not sites_gone(model.blocks[0])


def test_the_user_takes_note_of_it(tmp_path):
    model = made()
    convert(model, "blocks.1")
    gone = noble_fx.remove_branches(model, ["blocks.1.fc1", "blocks.1.fc2"])
    assert [site.fqn for site in gone] == ["blocks.1.fc1", "blocks.1.fc2"]
    assert told_gone(model) == ""
    noble_fx.load(tiny(layers=3), noble_fx.save(model, tmp_path / "folder"))
    convert(model)
    noble_fx.remove(model)
    assert told_gone(model) == ""
    assert not forget_choice(model)


def removed(model):
    noble_fx.remove(model)
    model.blocks[1].fc1 = nn.Linear(16, 32)


def without_a_block(model):
    del model.blocks[0]


def with_an_identity(model):
    model.blocks[1] = nn.Identity()


def resized(model):
    noble_fx.set_rank(model, 3)
    noble_fx.add_branches(model, "head|q_proj")


# What a user does on purpose, and would not be asked about.
QUIET = {
    "removed, then a layer of the user's": removed,
    "of a part": lambda model: noble_fx.remove(model.blocks[1]),
    "by a verb": lambda model: noble_fx.remove_branches(model, "blocks.1"),
    "a block is cut out, and others have its name": without_a_block,
    "a block is nothing now": with_an_identity,
    "other ranks, more branches": resized,
    "fold": noble_fx.fold,
}


@pytest.mark.parametrize("name", QUIET)
def test_what_is_meant_is_not_missed(name):
    model = made()
    QUIET[name](model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noble_fx.param_groups(model, lr=1e-3)
    assert "gone" not in noble_fx.explain(model).settings


def test_nor_is_the_rest_of_a_model_or_a_copy():
    model = made()
    whole = nn.ModuleList([model, copy.deepcopy(model)])
    for part in (copy.deepcopy(model.blocks[1]), model.blocks[0].fc1, whole, pickle.loads(pickle.dumps(model))):
        assert told_gone(part) == ""
    chosen = noble_fx.transform(tiny(layers=3), rank=2, select=r"blocks\.[02]\.fc1")
    del chosen.blocks[0]  # block 1, which never had one, is called 0 now
    assert told_gone(chosen) == ""


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_a_captured_model_misses_nothing(capture):
    examples = {"example_inputs": (torch.randint(11, (2, 5)),)} if capture == "export" else {}
    model = made(capture=capture, **examples)
    assert told_gone(model) == told_gone(copy.deepcopy(model)) == ""


def test_a_choice_knows_its_layers_in_this_process_alone():
    model = tiny(layers=1)
    choice = made_choice(model, noble_fx.sites(model, rank=2))
    assert {id(layer()) for layer in choice.layers} <= {id(module) for module in model.modules()}
    assert pickle.loads(pickle.dumps(choice)).layers == ()
    assert copy.deepcopy(choice) is choice

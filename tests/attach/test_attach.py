"""Where branches live in the tree, and how they are put there and taken out again."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import noble_fx
from noble_fx import NobleBranch, NobleConfig, NobleLinear
from noble_fx.attach.attach import (
    attach,
    branch_paths,
    carriers,
    detach,
    detach_site,
    exchange,
    named_branches,
    site_name,
)
from noble_fx.branches.experts import BranchGroup, StackedBranches
from noble_fx.sites.site import Site
from tests.models import tiny


def site(fqn: str, weight: str = "", experts: int = 0) -> Site:
    return Site(fqn, "other", "Linear", 6, 6, 2, True, "named", 24, weight=weight, experts=experts, action="add")


def branch() -> NobleBranch:
    return NobleBranch(6, 6, 2, NobleConfig(rank=2))


@pytest.mark.parametrize(
    ("where", "paths", "names"),
    [
        (site("a.fc"), ["a.fc.noble"], ["a.fc"]),
        (site("a.w", "a.w"), ["a.noble.w"], ["a.w"]),
        (site("w", "w"), ["noble.w"], ["w"]),
        (site("a.w", "a.w", experts=2), ["a.noble.w.0", "a.noble.w.1"], ["a.w.0", "a.w.1"]),
    ],
)
def test_paths_and_names_of_branches(where, paths, names):
    assert branch_paths(where) == paths
    assert [site_name(path) for path in paths] == names


def test_a_layer_stays_the_same_object():
    model = nn.Sequential(nn.Linear(6, 6))
    layer, calls = model[0], []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    attach(model, site("0"), [branch()])
    assert model[0] is layer
    assert type(layer) is NobleLinear
    model(torch.randn(2, 6))
    assert calls == ["hook"]
    detach(layer)
    assert type(layer) is nn.Linear
    assert list(dict(layer.named_modules())) == [""]


def test_a_bare_parameter_and_stacked_ones_get_a_group_in_their_owner():
    model = nn.Module()
    model.w, model.stack = nn.Parameter(torch.zeros(6, 6)), nn.Parameter(torch.zeros(2, 6, 6))
    attach(model, site("w", "w"), [branch()])
    attach(model, site("stack", "stack", experts=2), [branch(), branch()])
    assert isinstance(model.noble, BranchGroup)
    assert isinstance(model.noble["stack"], StackedBranches)
    assert list(named_branches(model)) == ["w", "stack.0", "stack.1"]
    assert list(carriers(model)) == [model]
    detach(model)
    assert list(carriers(model)) == []


def test_an_attention_changes_its_class_for_its_projections_and_back():
    model = nn.Sequential(nn.MultiheadAttention(6, 2))
    attach(model, site("0.out_proj"), [branch()])
    assert type(model[0]).__name__ == "NobleMultiheadAttention"
    assert isinstance(model[0], nn.MultiheadAttention)
    for carrier in list(carriers(model)):
        detach(carrier)
    assert type(model[0]) is nn.MultiheadAttention
    assert type(model[0].out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear


@pytest.mark.parametrize("put", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_layer_that_was_parametrized_since_stays_parametrized(put):
    model, x = noble_fx.transform(nn.Sequential(nn.Linear(6, 6)), rank=2).eval(), torch.randn(3, 6)
    put(model[0])
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    with noble_fx.disabled(model):
        expected = model(x)
    assert torch.equal(noble_fx.remove(model)(x), expected)
    assert calls == ["hook", "hook"]
    assert isinstance(model[0], nn.Linear)
    assert not isinstance(model[0], NobleLinear)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), expected)


def test_branches_of_a_plain_model_are_none():
    assert named_branches(tiny()) == {}
    assert list(carriers(tiny())) == []


@pytest.mark.parametrize("model", [None, 3, [nn.Linear(2, 2)], nn.Linear])
def test_what_is_no_model_is_refused_by_every_verb(model):
    verbs = (noble_fx.remove, noble_fx.reset_branches, noble_fx.fold, noble_fx.explain, noble_fx.sites)
    for verb in (*verbs, lambda model: noble_fx.param_groups(model, 0.1), lambda m: noble_fx.disabled(m).__enter__()):
        with pytest.raises(noble_fx.ConfigError, match=f"takes an nn.Module for a model, not {type(model).__name__}"):
            verb(model)


def test_branches_are_exchanged_wherever_they_are_held():
    model = noble_fx.transform(tiny(), rank=4, select="fc1")
    old = [model.blocks[i].fc1.noble for i in (0, 1)]
    new = branch()
    exchange(model, {id(old[0]): new})
    assert model.blocks[0].fc1.noble is new
    assert model.blocks[1].fc1.noble is old[1]


def test_the_branches_of_one_site_are_taken_out():
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    noble_fx.transform(layer, rank=4, select="all")
    chosen = {each.fqn: each for each in noble_fx.sites(layer)}
    for name in ("linear1", "self_attn.in_proj_weight"):
        detach_site(layer, chosen[name])
    assert type(layer.linear1) is nn.Linear
    assert type(layer.self_attn) is not nn.MultiheadAttention  # its out_proj has one still
    assert set(named_branches(layer)) == {"self_attn.out_proj", "linear2"}
    detach_site(layer, chosen["self_attn.out_proj"])
    assert type(layer.self_attn) is nn.MultiheadAttention
    assert "noble" not in layer.self_attn._modules

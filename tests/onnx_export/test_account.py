"""What a file says of itself: the settings, the sites, what was done, and with which versions."""

import json

import torch

import noble_fx
from noble_fx.onnx_export.account import describe, rewrites
from noble_fx.passes.history import Step
from tests.models import Gamma, tiny

STEPS = [
    Step("fold_branch", "a", "x", "y"),
    Step("join_up", "a", "x", "y"),
    Step("join_up", "b", "x", "", "why not"),
    Step("fold_branch", "b", "x", "y"),
    Step("remove_dead", "b", "x", "y"),
]


def test_rewrites_are_counted_in_their_order():
    assert list(rewrites(STEPS).items()) == [("fold_branch", 2), ("join_up", 1)]


def test_everything_is_told():
    model = noble_fx.transform(tiny(), rank=4, seed=3)
    account = json.loads(describe(model, STEPS, "a form", (torch.bfloat16, torch.float32)))
    assert account["model"] == type(model).__name__
    assert (account["config"]["rank"], account["config"]["seed"]) == (4, 3)
    assert (account["settings"]["form"], account["settings"]["dtype"]) == ("a form", "bfloat16, float32")
    assert account["sites"] == [site.to_dict() for site in noble_fx.sites(model)]
    assert account["passes"] == {"fold_branch": 2, "join_up": 1}
    assert account["versions"]["torch"] == torch.__version__
    assert account["versions"]["onnx"] != "unknown"
    mine = sum(p.numel() for name, p in model.named_parameters() if ".noble." in name)
    assert account["branch_params"] == mine > 0
    assert account["base_params"] == sum(p.numel() for p in model.parameters()) - mine


def test_a_callable_is_told_by_its_label_alone():
    """A config with a function in it cannot be written, and the file works without it."""
    model = noble_fx.transform(tiny(), rank=4, act=lambda rank: Gamma(rank))
    account = json.loads(describe(model, [], "", (torch.float32,)))
    assert list(account["config"]) == ["act"]
    assert isinstance(account["config"]["act"], str)


def test_a_plain_model_has_no_config():
    account = json.loads(describe(tiny(), [], "", (torch.float32,)))
    assert account["config"] == {}
    assert account["branch_params"] == 0

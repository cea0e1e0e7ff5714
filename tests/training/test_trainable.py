"""What learns: branches, base or all."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError, ConfigError
from tests.models import tiny, tokens, transformed


@pytest.mark.parametrize("capture", ["modules", "fx"])
@pytest.mark.parametrize("what", ["branches", "base", "all"])
def test_only_that_learns(capture, what):
    model = transformed(capture)
    assert noble_fx.set_trainable(model, what) is model
    optimizer = torch.optim.SGD(noble_fx.param_groups(model, lr=0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(tokens()).square().mean().backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    expected = {name for name in before if what == "all" or (".noble." in name) == (what == "branches")}
    assert changed == expected


def test_the_last_word_counts():
    model = transformed("modules")
    for what in ("branches", "base", "all"):
        noble_fx.set_trainable(model, what)
    assert all(p.requires_grad for p in model.parameters())


def test_weights_that_cannot_learn_stay_as_they_are():
    model = transformed("modules")
    model.table = nn.Parameter(torch.arange(3), requires_grad=False)
    noble_fx.set_trainable(model, "all")
    assert not model.table.requires_grad


@pytest.mark.parametrize(
    ("model", "what", "error", "message"),
    [
        (
            lambda: transformed("modules"),
            "branch",
            ConfigError,
            "what='branch' must be one of 'branches'",
        ),
        (tiny, "all", ConfigError, "no branches"),
        (lambda: torch.optim.swa_utils.AveragedModel(transformed("modules")), "base", CaptureError, "then wrap it"),
    ],
    ids=["word", "plain", "wrapped"],
)
def test_what_cannot_be_is_refused(model, what, error, message):
    with pytest.raises(error, match=message):
        noble_fx.set_trainable(model(), what)


def test_an_adapter_that_is_off_stays_frozen():
    model = noble_fx.transform(transformed("modules"), branch="lora", rank=2)
    noble_fx.use_adapters(model, None)
    noble_fx.set_trainable(model, "all")
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        name for name, _ in model.named_parameters() if ".adapters." in name
    }

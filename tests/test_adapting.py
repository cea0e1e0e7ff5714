"""Switching adapters, and taking them out."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from tests.test_stacking import adapted, fill, noble, plain


def two() -> nn.Module:
    return fill(adapted(adapted(noble()), adapter="more", select=["0", "3"]))


def test_one_several_weighted_and_none():
    model, x = two().double(), torch.randn(5, 12, dtype=torch.float64)
    layer = model[3]

    def out(weights):
        noble_fx.use_adapters(model, weights)
        return layer.noble(x)

    one, other = out("default"), out("more")
    torch.testing.assert_close(out(["default", "more"]), one + other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out({"default": 2, "more": -0.5}), 2 * one - 0.5 * other, rtol=1e-12, atol=1e-12)
    assert not out(None).any()
    assert torch.equal(model(x), noble().double()(x))


def test_a_captured_model_reads_todays_weights():
    for settings in ({"capture": "fx"}, {"capture": "export", "example_inputs": torch.randn(5, 12)}):
        model, x = adapted(plain(), **settings), torch.randn(4, 12)
        y = fill(model)(x)
        noble_fx.use_adapters(model, None)
        assert torch.equal(model(x), plain()(x))
        noble_fx.use_adapters(model, "default")
        assert torch.equal(model(x), y)


@pytest.mark.parametrize(
    ("adapters", "reason"),
    [
        ("defalt", "defalt is no adapter of this model"),
        ({"default": float("nan")}, "must be a finite number"),
        ({"default": True}, "must be a finite number"),
        (3, "must be a name, a list of names"),
        ([3], "must be a name, a list of names"),
    ],
)
def test_what_cannot_be_asked(adapters, reason):
    model, x = two(), torch.randn(5, 12)
    before = model(x)
    with pytest.raises(ConfigError, match=reason):
        noble_fx.use_adapters(model, adapters)
    assert torch.equal(model(x), before)


def test_one_is_dropped():
    model, x = two(), torch.randn(5, 12)
    noble_fx.use_adapters(model, "default")
    before = model(x)
    noble_fx.drop_adapters(model, "more")
    assert list(model[0].noble.adapters.named()) == ["default"]
    assert model[0].noble.unfused == ""
    assert torch.allclose(model(x), before, rtol=1e-5, atol=1e-6)
    assert not model[0].weight.requires_grad


def test_all_are_dropped_and_the_model_is_what_it_was():
    model, x = two(), torch.randn(5, 12)
    assert noble_fx.drop_adapters(model) is model
    assert torch.equal(model(x), noble()(x))
    assert list(model.state_dict()) == list(noble().state_dict())
    assert type(model[3]) is nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert noble_fx.sites(model) == noble_fx.sites(noble())


def test_of_linear_branches_alone():
    model, x = fill(adapted(plain())), torch.randn(5, 12)
    adapted(model, adapter="more", select=["0"])
    noble_fx.drop_adapters(model, "default")
    reasons = [site.reason for site in noble_fx.sites(model)]
    assert reasons[1:] == ["taken out by noble_fx.drop_adapters"] * 2
    assert not noble_fx.explain(model).to_dict()["settings"].get("gone")
    noble_fx.drop_adapters(model)
    assert torch.equal(model(x), plain()(x))
    assert [type(layer) for layer in model] == [type(layer) for layer in plain()]


def test_of_a_captured_model_all_or_none():
    model, x = fill(adapted(plain(), capture="fx")), torch.randn(5, 12)
    assert torch.equal(noble_fx.drop_adapters(model)(x), plain()(x))


def test_verbs_that_would_lose_them_are_refused():
    for verb in (lambda m: noble_fx.set_rank(m, 2), lambda m: noble_fx.add_branches(m, select=["3"])):
        model = adapted(noble(), select=["0"])
        with pytest.raises(ConfigError, match="adapters"):
            verb(model)

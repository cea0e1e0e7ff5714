"""A linear branch in the place of NOBLE's."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.branches.lora import LoraBranch


def plain(**settings: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12), **settings)


def lora(**settings: object) -> nn.Sequential:
    return noble_fx.transform(plain(), branch="lora", rank=3, select="all", seed=0, **settings)


def test_it_starts_as_the_model_alone_bit_for_bit_and_nothing_else_learns():
    model, x = lora(), torch.randn(5, 12)
    assert isinstance(model[0].noble, LoraBranch)
    assert model[0].noble.unfused == ""
    assert torch.equal(model(x), plain()(x))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {f"{i}.noble.adapters.default.{leaf}" for i in (0, 2) for leaf in ("down", "up")}


def test_it_learns_at_the_rate_that_was_asked_for():
    groups = noble_fx.param_groups(lora(), lr=1e-3, weight_decay=0.1)
    assert [(group["name"], group["lr"], len(group["params"])) for group in groups] == [
        ("lora.down ×1", 1e-3, 2),
        ("lora.up ×1", 1e-3, 2),
    ]


def test_the_operator_and_the_modules_agree():
    model = lora().double()
    nn.init.normal_(model[0].noble.adapters.default.up)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.linear(x, model[0].weight, model[0].bias) + model[0].noble(x)
    torch.testing.assert_close(model[0](x), expected, rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(model[0], (x,))
    assert torch.autograd.gradgradcheck(model[0], (x,))


def saved_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Of what backward keeps and is none of the layer's own tensors, each memory once."""
    own = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), *layer.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    del y
    return sum(kept.values())


def test_x_is_not_kept_where_d_is_frozen_too():
    layer, x = lora()[0], torch.randn(64, 12, requires_grad=True)
    assert saved_bytes(layer, x) == 64 * (12 + 3) * 4
    layer.noble.adapters.default.down.requires_grad_(False)  # LoRA-FA
    assert saved_bytes(layer, x) == 64 * 3 * 4


def test_dropout_runs_the_modules_in_training():
    model, x = lora(dropout=0.5), torch.randn(50, 12)
    nn.init.normal_(model[0].noble.adapters.default.up)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"act": "gelu"}, "act='gelu' is for branches with a σ"),
        ({"init_base": True}, "keeps frozen; pass init_base=False"),
        ({"scope": "block"}, "pass scope='linear'"),
        ({"dropout": 0.1, "capture": "fx"}, "pass capture='modules', or dropout=0"),
        ({"adapter": "a.b"}, "must be a name of letters"),
        ({"adapter": "gate"}, "torch's own"),
        ({"alpha": 0}, "alpha=0 must be a number > 0"),
        ({"dropout": 1.0}, "must be a number ≥ 0 and < 1"),
        ({"rslora": 1}, "rslora=1"),
    ],
)
def test_settings_that_cannot_be(settings, reason):
    model = plain()
    with pytest.raises(ConfigError, match=reason):
        noble_fx.transform(model, branch="lora", rank=3, **{"select": "all", **settings})
    assert type(model[0]) is nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("setting", [{"alpha": 8}, {"rslora": False}, {"dropout": 0.0}, {"adapter": "mine"}])
def test_its_settings_are_for_no_other_kind(setting):
    with pytest.raises(ConfigError, match="is for branch='lora', not 'noble'"):
        noble_fx.transform(plain(), rank=3, select="all", **setting)


def test_values_can_be_drawn_again():
    model, again = lora(), lora()
    nn.init.normal_(model[0].noble.adapters.default.up)
    noble_fx.reset_branches(model)
    assert torch.equal(model[0].noble.adapters.default.down, again[0].noble.adapters.default.down)
    assert not model[0].noble.adapters.default.up.any()


def test_zero_branches():
    model, x = lora(), torch.randn(5, 12)
    nn.init.normal_(model[0].noble.adapters.default.up)
    assert torch.equal(noble_fx.zero_branches(model)(x), plain()(x))

"""Adapters in a folder, and back."""

import json

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CheckpointError
from tests.test_stacking import adapted, fill, noble, plain

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))


def learning(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def of_one() -> nn.Module:
    return adapted(plain())


def of_two() -> nn.Module:
    return adapted(of_one(), adapter="more", select=["0"], alpha=3, rslora=False)


def after_a_drop() -> nn.Module:
    return noble_fx.drop_adapters(of_two(), "default")


def stack() -> nn.Module:
    return adapted(adapted(noble()), adapter="more", select=["0", "3"], rank=1)


@pytest.mark.parametrize("model", [of_one, of_two, after_a_drop, stack])
def test_what_is_loaded_is_what_was_saved(model, tmp_path):
    made = fill(model())
    noble_fx.use_adapters(made, {name: 0.5 + i for i, name in enumerate(["default", "more"]) if name in str(made)})
    again = noble_fx.load(plain(), noble_fx.save(made, tmp_path / "saved"))
    assert torch.equal(again(X), made(X))
    assert learning(again) == learning(made)
    assert [site.unfused for site in noble_fx.sites(again)] == [site.unfused for site in noble_fx.sites(made)]
    noble_fx.save(again, tmp_path / "again")
    first, second = (json.loads((tmp_path / name / "noble_config.json").read_text()) for name in ("saved", "again"))
    assert first["adapters"] == second["adapters"]


@pytest.mark.parametrize("off", [True, False])
def test_whether_it_was_off(off, tmp_path):
    made = fill(stack())
    noble_fx.use_adapters(made, None if off else "more")
    again = noble_fx.load(plain(), noble_fx.save(made, tmp_path / "saved"))
    assert torch.equal(again(X), made(X))
    assert learning(again) == learning(made)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda adapters: adapters.update({"9": adapters["0"]}), "no layer 9 that adapters could be beside"),
        (lambda adapters: adapters["0"]["default"].pop("rank"), "default does not say its rank"),
        (lambda adapters: adapters["0"]["default"].update(weight="much"), "which is no number"),
        (lambda adapters: adapters["0"]["default"].update(rank=3), r"is \[2, 12\] in the file and \[3, 12\]"),
        (lambda adapters: adapters.pop("0"), "is not in the model"),
        (lambda adapters: adapters["0"].update({"a.b": adapters["0"]["default"]}), "must be a name of letters"),
    ],
)
def test_a_damaged_file_changes_nothing(damage, reason, tmp_path):
    folder = noble_fx.save(fill(stack()), tmp_path / "saved")
    config = json.loads((folder / "noble_config.json").read_text())
    damage(config["adapters"])
    (folder / "noble_config.json").write_text(json.dumps(config))
    model = plain()
    with pytest.raises(CheckpointError, match=reason):
        noble_fx.load(model, folder)
    assert [type(layer) for layer in model] == [type(layer) for layer in plain()]
    assert all(parameter.requires_grad for parameter in model.parameters())

"""The first place where numbers stop being finite."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from tests.models import Tiny, silent, tiny, tokens, transformed
from tests.one_rank import fsdp2, one_rank


def fill(path, value):
    """Something that puts `value` into the first number of a parameter."""

    def spoil(model):
        with torch.no_grad():
            model.get_parameter(path).view(-1)[0] = value

    return spoil


def inflate(path, value=1e38):
    def spoil(model):
        with torch.no_grad():
            model.get_parameter(path).fill_(value)

    return spoil


SPOILED = {
    "parameter": (fill("blocks.1.fc1.noble.act.first.phase", torch.nan), "blocks.1.fc1.noble.act.first.phase", 1),
    "base parameter": (fill("blocks.0.norm.weight", torch.inf), "blocks.0.norm.weight", 1),
    "h": (inflate("blocks.0.fc2.noble.down"), "blocks.0.fc2", None),
    "branch": (inflate("blocks.1.v_proj.noble.up", 3e38), "blocks.1.v_proj", None),
    "base output": (inflate("blocks.1.fc1.weight"), "blocks.1.fc1", None),
    "input": (inflate("blocks.1.norm.weight", 3e38), "blocks.1.q_proj", None),
}


@pytest.mark.parametrize("capture", ["modules", "fx"])
@pytest.mark.parametrize("part", SPOILED)
def test_it_is_found_and_named(part, capture):
    spoil, place, count = SPOILED[part]
    model = transformed(capture)
    assert not noble_fx.find_nonfinite(model, tokens())
    spoil(model)
    found = noble_fx.find_nonfinite(model, tokens())
    assert found
    assert (found.place, found.part) == (place, part.removeprefix("base ") if count else part)
    assert 0 < found.nans + found.infinities <= found.numbers
    assert count is None or found.nans + found.infinities == count
    assert str(found).startswith(f"{place}: its {found.part} has {found.nans} NaN and {found.infinities} infinite of")


def test_what_is_said_of_each():
    said = {}
    for part, (spoil, _, _) in SPOILED.items():
        model = transformed("modules")
        spoil(model)
        said[part] = str(noble_fx.find_nonfinite(model, tokens()))
    assert "noble_fx.reset_branches(model)" in said["parameter"]
    assert "its input is finite, and so is every site before" in said["h"]
    assert "after blocks.0.fc2, outside of any site" in said["input"]
    assert str(noble_fx.find_nonfinite(transformed("modules"), tokens())).endswith("is finite")


def test_a_sum_that_is_too_large():
    model = noble_fx.transform(nn.Sequential(nn.Linear(2, 2)), rank=1, select="all", act="identity")
    with torch.no_grad():
        for path, value in (("0.weight", 1e38), ("0.bias", 1e38), ("0.noble.down", 1.0), ("0.noble.up", 1e38)):
            model.get_parameter(path).fill_(value)
    found = noble_fx.find_nonfinite(model, torch.ones(1, 2) * 0.9)
    assert (found.place, found.part) == ("0", "output")
    assert "their sum" in found.remark


def test_a_gradient_of_the_last_site_to_run():
    model = silent(transformed("modules"))
    (model(tokens()).sum() * torch.inf).backward()
    found = noble_fx.find_nonfinite(model, tokens())
    assert found.part == "gradient"
    assert found.place.startswith("blocks.1.fc2.")
    assert "backward came first" in found.remark
    for name, parameter in model.named_parameters():
        if "blocks" in name:
            parameter.grad = None
    assert "is the first by name" in noble_fx.find_nonfinite(model, tokens()).remark


class Counting(Tiny):
    """A model whose forward changes a buffer, draws, and masks by an infinity."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))
        self.norm = nn.BatchNorm1d(20)

    def forward(self, idx):
        logits = self.norm(super().forward(idx).transpose(1, 2)).transpose(1, 2)
        return {"masked": logits.masked_fill(logits < 0, -torch.inf)}


def test_the_model_and_the_generators_are_left_as_they_were_and_masks_are_no_trouble():
    torch.manual_seed(0)
    model = noble_fx.transform(Counting(), rank=4, seed=0).train()
    model(tokens()).values()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    assert not noble_fx.find_nonfinite(model, idx=tokens())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: list(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.training


@pytest.mark.parametrize(("result", "nans"), [(lambda masked: masked.sum(), 0), (lambda masked: masked * 0, 1)])
def test_an_infinite_loss_and_a_nan_are_trouble(result, nans):
    class WithLoss(Counting):
        def forward(self, idx):
            return result(super().forward(idx)["masked"])

    found = noble_fx.find_nonfinite(noble_fx.transform(WithLoss(), rank=4), tokens())
    assert (found.place, found.part) == ("the model", "result")
    assert (found.nans > 0) == nans
    assert "after blocks.1.fc2, outside of any site" in found.remark


def test_a_sharded_model():
    with one_rank() as mesh:
        model = transformed("modules")
        SPOILED["h"][0](model)
        found = noble_fx.find_nonfinite(fsdp2(model, mesh), tokens())
    assert (found.place, found.part) == ("blocks.0.fc2", "h")


@pytest.mark.parametrize(
    ("make", "message"),
    [(tiny, "no branches"), (lambda: transformed("modules").to("meta"), "meta device")],
    ids=["plain", "meta"],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        noble_fx.find_nonfinite(make(), tokens())


class Rows(nn.Module):
    """A model of rows, with an additive mask that it may be given."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, mask=None):
        return self.two(self.one(x) if mask is None else (self.one(x) + mask).softmax(-1))


@pytest.mark.parametrize(("value", "nans"), [(torch.nan, 1), (torch.inf, 0)])
def test_the_models_own_input(value, nans):
    model = noble_fx.transform(Rows(), rank=2, seed=0)
    x = torch.ones(4, 8)
    x[2, 3] = value
    found = noble_fx.find_nonfinite(model, x)
    assert (found.place, found.part, found.nans, found.infinities) == ("the model", "own input", nans, 1 - nans)
    assert str(found).startswith(f"the model's own input has {nans} NaN and {1 - nans} infinite of 32 numbers; ")
    assert noble_fx.find_nonfinite(model, x=x) == found


def test_a_mask_is_blamed_for_nothing():
    model, mask = noble_fx.transform(Rows(), rank=2, seed=0), torch.zeros(8)
    mask[3:] = -torch.inf
    assert not noble_fx.find_nonfinite(model, torch.ones(4, 8), mask)
    inflate("one.noble.down")(model)
    assert noble_fx.find_nonfinite(model, torch.ones(4, 8), mask).place == "one"


def test_a_dictionary_that_forward_does_not_take():
    model = noble_fx.transform(Rows(), rank=2, seed=0)
    with pytest.raises(ConfigError, match=r"pass a dictionary of inputs as find_nonfinite\(model, \*\*batch\)"):
        noble_fx.find_nonfinite(model, {"x": torch.ones(4, 8)})
    with pytest.raises(RuntimeError, match="shapes"):
        noble_fx.find_nonfinite(model, torch.ones(4, 7))
    taking = noble_fx.transform(Dictionary(), rank=2, seed=0)
    assert not noble_fx.find_nonfinite(taking, {"x": torch.ones(4, 8)})


class Dictionary(Rows):
    def forward(self, batch):
        return super().forward(batch["x"])

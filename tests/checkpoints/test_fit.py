"""What a folder has to hold for a planned model; whole folders are tried in tests/test_checkpoint.py."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CheckpointError, NobleConfig
from noble_fx.checkpoints.fit import Fit, fill, kept
from noble_fx.checkpoints.weights_file import Stored
from noble_fx.transform import make_plan
from tests.models import Tiny, tiny


def fit_of(model, **settings):
    return Fit(model, make_plan(model, NobleConfig(rank=2, **settings)), "folder")


def header(model):
    return {name: Stored(tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_expected_is_what_transform_makes(dtype):
    expected = fit_of(tiny().to(dtype)).expected
    made = noble_fx.transform(tiny().to(dtype), rank=2).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in expected.items()} == {
        name: (t.shape, t.dtype) for name, t in made.items()
    }


def test_a_layer_of_two_names_is_in_the_file_under_either():
    def make():
        model = Tiny()
        model.blocks[1].fc1 = model.blocks[0].fc1
        return model

    fit, whole = fit_of(make()), header(noble_fx.transform(make(), rank=2))
    for left_out in ("blocks.0.fc1", "blocks.1.fc1"):
        fit.check_header({name: entry for name, entry in whole.items() if not name.startswith(left_out)}, {})
    with pytest.raises(CheckpointError, match=r"blocks.0.fc1.weight is not in the file.*and \d+ more"):
        fit.check_header({name: entry for name, entry in whole.items() if "fc1" not in name}, {})


def test_integers_are_of_the_same_dtype():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    fit, whole = fit_of(model, select=["0"]), header(noble_fx.transform(model, rank=2, select=["0"]))
    fit.check_header(whole, {})
    whole["1.num_batches_tracked"] = Stored((), torch.int32)
    with pytest.raises(CheckpointError, match=r"num_batches_tracked is torch.int32 in the file and torch.int64 in the"):
        fit.check_header(whole, {})


def test_values_are_filled_by_the_modules_own_way():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.seen = []
            self.register_load_state_dict_pre_hook(lambda module, state, *rest: module.seen.append(len(state)))

        def forward(self, x):
            return self.linear(x)

    model = Renamed()
    fit = fit_of(model)
    values = {name: torch.full_like(t, 2.0) for name, t in noble_fx.transform(model, rank=2).state_dict().items()}
    fill(model, fit, values)
    assert model.seen == [len(values)]
    assert all((p == 2).all() for p in model.parameters())


def half_filled(model):
    with kept(model), torch.no_grad():
        model.weight.fill_(5)
        model.num_batches_tracked += 1
        raise KeyboardInterrupt


def test_what_was_changed_is_put_back():
    model = nn.BatchNorm1d(3)
    with pytest.raises(KeyboardInterrupt):
        half_filled(model)
    assert torch.equal(model.weight, torch.ones(3))
    assert model.num_batches_tracked == 0

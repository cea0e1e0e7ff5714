"""`noble_fx.truncate`: what masks or gates have prepared is cut off."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.rules import Gates, Prefix
from noble_fx.training.rules.channels import gate, masks
from tests.models import loud, tiny, tokens, transformed

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def prepared(act="cosnet", normalise="none", rank=6, **settings):
    model = transformed(act=act, rank=rank, **settings).double()
    return model, Prefix(model, normalise=normalise)


@pytest.mark.parametrize("act", noble_fx.activation_names())
@pytest.mark.parametrize("normalise", ["none", "root"])
def test_what_is_left_is_what_the_masks_let_through(act, normalise):
    model, rule = prepared(act, normalise)
    with rule.at(4):
        wanted = model(tokens())
    changes = noble_fx.truncate(model, rank=4)
    assert [(change.before, change.after) for change in changes] == [(6, 4)] * 12
    torch.testing.assert_close(model(tokens()), wanted, **EXACT)
    branch = model.blocks[0].fc1.noble
    assert (branch.rank, branch.unfused, masks(branch)) == (4, "", [])
    assert {site.rank for site in noble_fx.sites(model) if site.selected} == {4}


def test_the_result_is_saved_and_loaded_like_any_other(tmp_path):
    model, _ = prepared()
    noble_fx.truncate(model, rank=3)
    noble_fx.save(model, tmp_path / "cut")
    again = noble_fx.load(tiny().double(), tmp_path / "cut")
    assert torch.equal(again(tokens()), model(tokens()))


def test_other_ranks_keep_their_share():
    model, rule = prepared(rank=4, rank_pattern={"fc": 8})
    with rule.at(3):
        wanted = model(tokens())
    noble_fx.truncate(model, rank=3)
    assert (model.blocks[0].fc1.noble.rank, model.blocks[0].q_proj.noble.rank) == (3, 2)
    torch.testing.assert_close(model(tokens()), wanted, **EXACT)


def test_a_budget_is_kept_and_used():
    model, _ = prepared()
    before = sum(p.numel() for name, p in model.named_parameters() if ".noble." in name)
    noble_fx.truncate(model, budget=before // 2)
    rank = model.blocks[0].fc1.noble.rank
    after = sum(p.numel() for name, p in model.named_parameters() if ".noble." in name)
    assert after <= before // 2
    larger = noble_fx.transform(tiny(), rank=rank + 1)
    assert sum(p.numel() for name, p in larger.named_parameters() if ".noble." in name) > before // 2
    with pytest.raises(ConfigError, match="budget=5 is below"):
        noble_fx.truncate(prepared()[0], budget=5)


def test_a_loss_is_asked_for_the_least_rank_that_is_good_enough():
    model, _ = prepared()
    asked = []

    def loss(made):
        rank = int(masks(made.blocks[0].fc1.noble)[0].mask.count_nonzero())
        asked.append(rank)
        return (6 - rank) * 0.1

    noble_fx.truncate(model, loss=loss, within=0.25)
    assert model.blocks[0].fc1.noble.rank == 4
    assert asked[0] == 6
    assert len(asked) <= 4


def test_a_loss_that_changes_the_mode_leaves_it_as_it_was():
    model, _ = prepared()
    model.train()
    noble_fx.truncate(model, loss=lambda made: made.eval()(tokens()).square().mean().item(), within=100.0)
    assert model.training
    assert model.blocks[0].fc1.noble.rank == 1


def test_a_model_that_nothing_has_prepared():
    model = transformed(rank=6).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"were not trained to do without their last channels.*noble_fx\.set_rank"):
        noble_fx.truncate(model, rank=4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changes = noble_fx.truncate(model, rank=4, untrained=True, inputs=tokens())
    assert all(change.error > 0.01 and change.on == "inputs" for change in changes)


def test_the_error_is_that_of_the_branch_on_the_inputs():
    torch.manual_seed(0)
    model = loud(noble_fx.transform(nn.Sequential(nn.Linear(8, 9)), rank=5, select="all")).double()
    x = torch.randn(200, 8, dtype=torch.float64)
    whole = model[0].noble(x)
    (change,) = noble_fx.truncate(model, rank=3, untrained=True, inputs=x)
    off = (model[0].noble(x) - whole).norm() / whole.norm()
    assert change.error == pytest.approx(off.item(), rel=1e-6)


@pytest.mark.parametrize("act", ["gelu", "cos"])
def test_channels_of_gates_at_zero_go_and_nothing_else_changes(act):
    model = transformed(act=act, rank=6).double()
    Gates(model)
    with torch.no_grad():
        gate(model.blocks[0].fc1.noble).scale[[0, 3]] = 0
        gate(model.blocks[1].q_proj.noble).scale.zero_()
    wanted = model(tokens())
    changes = noble_fx.truncate(model)
    assert [(change.fqn, change.after) for change in changes] == [("blocks.0.fc1", 4), ("blocks.1.q_proj", 1)]
    torch.testing.assert_close(model(tokens()), wanted, rtol=1e-5, atol=1e-5)
    assert gate(model.blocks[0].fc1.noble) is None


def test_of_a_sigma_with_a_matrix_what_it_reads_is_chosen_and_fitted():
    model = transformed(rank=6).double()
    Gates(model)
    with torch.no_grad():
        gate(model.blocks[0].fc1.noble).scale[[1, 2]] = 0
    (change,) = noble_fx.truncate(model, inputs=tokens())
    assert (change.fqn, change.after, change.on) == ("blocks.0.fc1", 4, "inputs")
    assert change.error < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "takes one of rank=…, budget=… and loss=…"),
        ({"rank": 3, "budget": 10}, "takes one of"),
        ({"rank": 9}, "rank=9 must be a number from 1 to 6"),
        ({"budget": 1.5}, "budget=1.5 must be a number of parameters"),
        ({"loss": 1.5}, "must be a callable"),
        ({"loss": lambda model: float("nan")}, r"loss\(model\) is nan at rank 6"),
        ({"rank": 3, "within": -1}, "within=-1 must be"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(settings, message):
    model, rule = prepared()
    wanted = model(tokens())
    with pytest.raises(ConfigError, match=message):
        noble_fx.truncate(model, **settings)
    assert torch.equal(model(tokens()), wanted)
    assert rule.close() is model


def test_gates_say_themselves_what_is_left():
    model = transformed()
    rule = Gates(model)
    with pytest.raises(ConfigError, match="say what is left"):
        noble_fx.truncate(model, rank=2)
    rule.close()


def test_fewer_channels_where_the_model_runs_in_bfloat16():
    model = loud(noble_fx.transform(tiny(), rank=6, seed=0)).bfloat16()
    Prefix(model)
    noble_fx.truncate(model, rank=2)
    assert model.blocks[0].fc1.noble.up.dtype == torch.bfloat16
    assert model(tokens()).isfinite().all()

"""The parts of bases that count least are cut off."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.bases.low_rank import spectral_factors
from tests.models import tiny, tokens
from tests.one_rank import fsdp2, one_rank


def made(kind="spectral", **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    return noble_fx.transform(model, **{"rank": 2, "select": "all", "seed": 0, "base": kind} | settings)


@pytest.mark.parametrize("kind", ["factorized", "ordered", "spectral"])
def test_by_rank_each_is_the_best_of_that_rank(kind):
    model = made(kind, base_rank=6)
    weights = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    assert noble_fx.truncate_bases(model, rank=0.25) == {"0": 2, "2": 2}
    for layer, weight in zip((model[0], model[2]), weights, strict=True):
        up, down = spectral_factors(weight, 2)
        torch.testing.assert_close(layer.weight, up @ down, rtol=1e-4, atol=1e-5)
        assert layer.base.kind == kind
        assert all(p.requires_grad for p in layer.base.parameters())
    assert [site.base_rank for site in noble_fx.sites(model)] == [2, 2]
    model(torch.randn(3, 8)).sum().backward()


def test_by_threshold_what_counts_less_than_that_share_of_the_first_goes():
    model = made()
    with torch.no_grad():
        model[0].base.spectrum.copy_(torch.tensor([10.0, 5.0, 1.1, 0.9, 0.5, 0.3, 0.2, 0.1]))
        model[2].base.spectrum.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]))
    assert noble_fx.truncate_bases(model, threshold=0.1) == {"0": 3, "2": 1}


def test_what_would_save_nothing_gets_its_w_back():
    model = made()
    with torch.no_grad():
        model[2].base.spectrum[2:] = 0
    x = torch.randn(3, 8)
    expected = model(x)
    assert noble_fx.truncate_bases(model, threshold=1e-6) == {"0": 0, "2": 2}
    assert type(model[0]).__name__ == "NobleLinear"
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_larger_rank_cuts_nothing():
    model = made("factorized", base_rank=3)
    parts = list(model.parameters())
    assert noble_fx.truncate_bases(model, rank=5) == {"0": 3, "2": 3}
    assert all(one is other for one, other in zip(model.parameters(), parts, strict=True))


def test_what_was_cut_is_saved_and_loaded(tmp_path):
    model = made("ordered")
    noble_fx.truncate_bases(model, rank=2)
    noble_fx.save(model, tmp_path / "m")
    plain = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    x = torch.randn(3, 8)
    assert torch.equal(noble_fx.load(plain, tmp_path / "m")(x), model(x))


def test_a_captured_model_runs_what_is_left():
    model = noble_fx.transform(tiny(), rank=2, seed=0, base="ordered", capture="fx").eval()
    noble_fx.truncate_bases(model, rank=4)
    plain = tiny()
    for fqn in noble_fx.named_bases(model):
        plain.get_submodule(fqn).weight = nn.Parameter(model.get_submodule(fqn).weight.detach())
    with noble_fx.disabled(model):
        torch.testing.assert_close(model(tokens()), plain.eval()(tokens()))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "takes either rank=… or threshold=…"),
        ({"rank": 2, "threshold": 0.1}, "takes either rank=… or threshold=…"),
        ({"rank": 0}, "rank=0 is not a rank"),
        ({"rank": "4%"}, "rank='4%' is not a rank"),
        ({"threshold": 1.0}, "threshold=1.0 must be a share of the first part's weight"),
        ({"threshold": True}, "threshold=True must be a share"),
    ],
)
def test_what_cannot_be_is_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        noble_fx.truncate_bases(made(), **settings)


def test_models_of_which_nothing_can_be_cut_say_why():
    with pytest.raises(ConfigError, match="no weight of the model has another form"):
        noble_fx.truncate_bases(tiny(), rank=2)
    with pytest.raises(ConfigError, match="none of the model's bases can be cut; '0': bases of kind 'sparse_low_rank'"):
        noble_fx.truncate_bases(made("sparse_low_rank", base_rank=2), rank=1)
    with pytest.raises(ConfigError, match="guided by its W until 50% of training"):
        noble_fx.truncate_bases(made("ordered", guide=0.5), rank=1)
    with one_rank() as mesh:
        sharded = fsdp2(noble_fx.transform(tiny(), rank=2, base="ordered"), mesh)
        with pytest.raises(CaptureError, match="change the plain model, then wrap it anew"):
            noble_fx.truncate_bases(sharded, rank=2)

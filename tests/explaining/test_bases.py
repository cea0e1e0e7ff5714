"""What `explain` says of weights that have another form."""

import torch
from torch import nn

import noble_fx
from noble_fx.bases.low_rank import LowRank
from noble_fx.explaining.bases import errors_of, kind_of, told_bases
from noble_fx.layers.restructure import matrix_of, structure


def compressed(error=0.02):
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32))
    base = LowRank(32, 64, 8)
    base.fill(matrix_of(model[0]))
    base.error = error
    structure(model[0], base, model[0].bias)
    return model


def test_a_line_for_each_kind_counts_parameters_and_flops():
    lines = list(told_bases(noble_fx.sites(compressed(), select="all", rank=4)))
    assert lines[0] == ("W is factorized at 1 layers: 768 (38%) parameters of 2,048, 1,536 (38%) FLOPs of 4,096")
    assert "4-bit quantization" in lines[1]


def test_nothing_is_said_of_a_model_that_has_none():
    assert list(told_bases(noble_fx.sites(nn.Sequential(nn.Linear(32, 64)), rank=4))) == []


def test_a_form_that_was_not_fitted_says_nothing_of_errors():
    listed = noble_fx.sites(compressed(error=None), select="all", rank=4)
    assert len(list(told_bases(listed))) == 1
    assert errors_of(listed) == ""


def test_the_account_tells_kind_rank_and_error():
    model = compressed()
    text = str(noble_fx.explain(model))
    assert "Linear, factorized r 8" in text
    assert "off by 2.00%" in " ".join(text.split())
    assert "Sequential: W has another form at 1 of 2 linear maps, and none carries a branch" in text
    site = noble_fx.sites(model, rank=4)[0]
    assert kind_of(site) == "Linear, factorized r 8"
    assert (site.base, site.base_rank, site.base_params, site.base_row_flops) == ("factorized", 8, 768, 1536)


def test_a_guide_is_told():
    model = nn.Sequential(nn.Linear(32, 64))
    noble_fx.transform(model, rank=4, base="factorized", base_rank=8, guide=0.5)
    (site,) = noble_fx.sites(model)
    assert kind_of(site) == "Linear, guided factorized r 8"
    (line,) = told_bases([site])
    assert line.endswith("each guided by its W until 50% of training")
    noble_fx.step(model, 0.5)
    assert kind_of(noble_fx.sites(model)[0]) == "Linear, factorized r 8"


def test_flops_are_those_of_the_thin_products():
    entry = noble_fx.explain(compressed()).to_dict()["sites"][0]
    assert entry["base_flops"] == 2 * 8 * (32 + 64)


def test_a_transformed_model_tells_both():
    torch.manual_seed(0)
    text = str(noble_fx.explain(noble_fx.transform(compressed(), rank=4, select="all", seed=0)))
    assert "W is factorized at 1 layers" in text
    assert "fused: 1 sites, each one noble_fx::linear" in text
    assert "fused: 1 sites with a factorized W, each one noble_fx::factorized_linear" in text

"""At which chosen sites W gets another form, and why it stays elsewhere: what `sites` and `dry_run` say beforehand."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.layers.restructure import matrix_of
from tests.models import tiny
from tests.one_rank import one_rank, tensor_parallel

KEEPS = "; W stays as it is: "


def planned(model, **settings):
    chosen = {"rank": 2, "select": "all", "base": "factorized", "base_rank": 2} | settings
    return {site.fqn: site for site in noble_fx.transform(model, dry_run=True, **chosen)}


def test_the_form_is_planned_with_its_rank_and_its_costs():
    model = tiny()
    listed = noble_fx.sites(model, rank=2, base="factorized", base_rank=0.25)
    assert listed == noble_fx.transform(model, rank=2, base="factorized", base_rank=0.25, dry_run=True)
    fc1 = next(site for site in listed if site.fqn == "blocks.0.fc1")
    assert (fc1.base, fc1.base_rank, fc1.base_params, fc1.base_row_flops) == ("factorized", 4, 192, 384)
    assert not next(site for site in listed if site.fqn == "head").base  # not chosen
    assert "q_proj.weight" in str(list(model.state_dict()))


@pytest.mark.parametrize("guide", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["factorized", "block_diagonal", "ordered"])
def test_what_was_planned_is_what_the_model_has_then(kind, guide):
    model = tiny()
    own = {"blocks": 2} if kind == "block_diagonal" else None
    settings = {"rank": 2, "base": kind, "base_rank": 4, "base_settings": own, "guide": guide}
    before = noble_fx.transform(model, dry_run=True, **settings)
    assert noble_fx.sites(noble_fx.transform(model, **settings)) == before


def test_a_rank_that_saves_nothing_leaves_w_dense_in_a_group():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 32))  # break-even at 4 and at 6.4
    listed = planned(model, base_rank=4)
    assert (listed["0"].base, listed["1"].base) == ("", "factorized")
    why = "at base_rank 4 it would have 64 parameters in the place of 64, which saves nothing"
    assert listed["0"].reason.endswith(KEEPS + why)
    noble_fx.transform(model, rank=2, select="all", base="factorized", base_rank=4)
    assert list(noble_fx.named_bases(model)) == ["1"]
    assert noble_fx.sites(model)[0].reason == listed["0"].reason


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"base_rank": 4},
            "W of '0' cannot be factorized: at base_rank 4 it would have 64 parameters .* select='auto'",
        ),
        ({"base_rank": 9}, r"its rank 9 is above min\(K, N\) = 8"),
        (
            {"base": "sparse_low_rank", "base_rank": 3, "base_settings": {"density": 0.3}},
            "67 parameters in the place of",
        ),
        (
            {"base": "block_diagonal", "base_settings": {"blocks": 3}},
            "blocks=3 do not divide K = 8; blocks=2, 4, 8 would",
        ),
    ],
)
@pytest.mark.parametrize("select", [["0"], "^0$", lambda site: site.fqn == "0"])
def test_at_a_layer_that_was_named_it_is_an_error(settings, reason, select):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 32))
    with pytest.raises(ConfigError, match=reason):
        planned(model, select=select, **settings)


@pytest.mark.parametrize(("form", "unit"), [("dense", 3), ("shuffle", 9)])
def test_a_share_is_rounded_to_ranks_that_fit(form, unit):
    model = nn.Sequential(nn.Linear(48, 60), nn.Linear(60, 48))
    settings = {"base": "block_diagonal", "base_settings": {"blocks": 3, "form": form}}
    assert planned(model, base_rank=0.3, **settings)["0"].base_rank == round(0.3 * 48 / unit) * unit
    assert planned(model, base_rank=0.01, **settings)["0"].base_rank == unit
    with pytest.raises(ConfigError, match=f"its rank 14 must be a multiple of blocks.? = {unit}"):
        planned(model, base_rank=14, **settings)


def test_settings_that_no_layer_could_have_are_an_error_of_sites_too():
    with pytest.raises(ConfigError, match="base='factorized' needs a rank"):
        noble_fx.sites(tiny(), rank=2, base="factorized")


def test_a_form_that_fits_no_layer_at_all_is_an_error():
    with pytest.raises(ConfigError, match="base='factorized' fits no layer that was chosen: 1 × at base_rank 4"):
        planned(nn.Sequential(nn.Linear(8, 8)), base_rank=4)
    assert noble_fx.sites(nn.Sequential(nn.Linear(8, 8)), rank=2, select="all", base="factorized", base_rank=4)


@pytest.mark.parametrize("kind", ["ordered", "spectral"])
def test_forms_of_full_width_save_nothing_at_first_and_are_taken(kind):
    site = planned(nn.Sequential(nn.Linear(8, 12)), base=kind, base_rank=None)["0"]
    assert (site.base, site.base_rank) == (kind, 8)


class Own(nn.Linear):
    def forward(self, x):
        return x @ self.weight.t()


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        self.attention, self.own = nn.MultiheadAttention(8, 2, batch_first=True), Own(8, 8)
        self.convolution, self.plain = nn.Conv1d(8, 8, 1), nn.Linear(8, 8)

    def forward(self, x):
        h = self.embed(x)
        h = self.plain(self.own(self.attention(h, h, h)[0]))
        return self.head(self.convolution(h.transpose(1, 2)).transpose(1, 2))


def test_each_layer_that_keeps_its_w_says_why():
    model = Mixed()
    listed = planned(model)
    reasons = {fqn: site.reason.partition(KEEPS)[2] for fqn, site in listed.items() if site.selected}
    assert reasons["plain"] == ""
    assert "forward of its own, which reads its weight" in reasons["own"]
    assert "no linear layer of which this is known" in reasons["convolution"]
    assert reasons["attention.out_proj"] == "the MultiheadAttention around it reads its weight"
    assert reasons["attention.in_proj_weight"] == "it is a parameter outside of any layer"
    noble_fx.transform(model, rank=2, select="all", base="factorized", base_rank=2, seed=0)
    assert list(noble_fx.named_bases(model)) == ["plain"]
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()


def test_a_tied_weight_stays():
    with pytest.raises(ConfigError, match="W of 'head' cannot be factorized: it is tied to another module's"):
        planned(Mixed(), select=["head"])


def test_a_layer_under_two_names_is_not_tied():
    model = nn.Module()
    model.one = model.other = nn.Linear(8, 8)
    assert planned(model)["one"].base == "factorized"


def test_a_weight_that_is_spread_over_ranks_is_refused_by_its_name():
    with one_rank() as mesh:
        model = tensor_parallel(tiny(), mesh)
        reason = "W of 'blocks.0.fc1' cannot be factorized: its weight is spread over ranks already; transform"
        with pytest.raises(ConfigError, match=reason):
            noble_fx.transform(model, rank=2, base="factorized", base_rank=2)
        assert type(model.blocks[0].q_proj) is nn.Linear


def test_a_layer_that_has_a_base_keeps_it():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    noble_fx.transform(model, rank=2, select=["0"], base="factorized", base_rank=2)
    base = model[0].base
    noble_fx.remove(model)
    noble_fx.transform(model, rank=2, select="all", base="spectral")
    assert model[0].base is base
    assert model[1].base.kind == "spectral"


def test_captures_whose_graphs_read_w_refuse_it():
    with pytest.raises(
        ConfigError, match="the graphs of capture='export' read W itself; use capture='modules' or 'fx'"
    ):
        planned(tiny(), capture="export", example_inputs=(torch.zeros(1, 4, dtype=torch.long),))


def test_a_layer_of_transposed_weight_gets_one():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(20, 12))
    weight = matrix_of(model[0]).detach().clone()
    assert weight.shape == (20, 12)
    noble_fx.transform(model, rank=2, select="all", base="spectral", seed=0)
    torch.testing.assert_close(model[0].base.merged(), weight, rtol=1e-5, atol=1e-6)

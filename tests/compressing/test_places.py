"""Which layers may be compressed, and why others are left alone."""

import pytest
import torch
from torch import nn

from noble_fx.compressing.places import find_places
from noble_fx.errors import ConfigError
from tests.compressing.models import exact, places_of, with_branches
from tests.models import tiny


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def reasons(model, select="all", exclude=None) -> dict[str, str]:
    return {site.fqn: site.reason for site in find_places(model, select, exclude)[1] if not site.selected}


def test_the_layers_of_blocks():
    places, sites = find_places(exact(), "auto", None)
    assert [place.name for place in places] == [
        f"blocks.{i}.{name}" for i in range(2) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
    ]
    assert all(site.action == "replace" for site in sites if site.selected)
    assert [site.fqn for site in sites if not site.selected] == ["head"]


def test_what_a_place_knows():
    (place,) = places_of(with_branches(), ["blocks.0.fc1"])
    layer = place.layer
    assert torch.equal(place.weight, layer.weight)
    assert place.free == 4
    assert place.branch is layer.noble
    terms = place.terms
    assert torch.equal(terms.whole, torch.cat([layer.weight, layer.noble.up, layer.bias[:, None]], 1))
    (plain,) = places_of(exact(), ["blocks.0.k_proj"])
    assert plain.bias is None
    assert plain.branch is None
    assert plain.terms.up.shape == (16, 0)


def test_a_weight_that_is_transposed():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    (place,) = places_of(nn.Sequential(conv1d(6, 4)))
    assert place.weight.shape == (6, 4)


def test_what_is_left_out_has_its_reason():
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(8, 8),
            "own": Own(8, 8),
            "tied": nn.Linear(8, 8),
            "partner": nn.Linear(8, 8),
            "packed": nn.Linear(8, 8),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
            "meta": nn.Linear(8, 8, device="meta"),
            "attention": nn.MultiheadAttention(8, 2),
            "thin": nn.Linear(8, 1),
            "conv": nn.Conv1d(8, 8, 1),
        }
    )
    model["partner"].weight = model["tied"].weight
    model["packed"].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    found = reasons(model)
    assert "plain" not in found
    assert "a forward of its own" in found["own"]
    assert "tied" in found["tied"]
    assert "tied" in found["partner"]
    assert "compress the model before it is quantized" in found["packed"]
    assert "parametrized" in found["normed"]
    assert "meta device" in found["meta"]
    assert "a bare parameter" in found["attention.in_proj_weight"]
    assert "multiplies with its weight itself" in found["attention.out_proj"]
    assert "not below min(K, N)" in found["thin"]
    assert "conv" in found


@pytest.mark.parametrize("name", ["tied", "packed"])
def test_named_it_is_an_error(name):
    model = nn.ModuleDict({"tied": nn.Linear(8, 8), "partner": nn.Linear(8, 8), "packed": nn.Linear(8, 8)})
    model["partner"].weight = model["tied"].weight
    model["packed"].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=f"select names '{name}', which cannot be compressed: its weight is"):
        find_places(model, [name], None)


def test_select_and_exclude():
    assert {place.name for place in find_places(exact(), "fc", "blocks.0")[0]} == {"blocks.1.fc1", "blocks.1.fc2"}
    assert reasons(exact(), "all", "blocks.0.fc1")["blocks.0.fc1"] == "matches exclude='blocks.0.fc1'"
    with pytest.raises(ConfigError, match="exclude='nope' matches no linear layer"):
        find_places(exact(), "all", "nope")
    with pytest.raises(ConfigError, match="select names 'nope'"):
        find_places(exact(), ["nope"], None)


def test_nothing_to_compress():
    with pytest.raises(ConfigError, match="no linear layer, so there is nothing to compress"):
        find_places(nn.ReLU(), "auto", None)
    with pytest.raises(ConfigError, match=r"leaves no layer to compress: .* × not matched by select"):
        find_places(tiny(), "nowhere", None)

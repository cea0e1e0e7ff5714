"""Which layers are found, chosen and refused, and what the reasons say."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from tests.models import Tiny, WithOptional, tiny

BLOCK = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


def chosen(model: nn.Module, **settings) -> list[str]:
    return [s.fqn for s in noble_fx.transform(model, dry_run=True, **{"rank": 4, **settings}) if s.selected]


def reasons(model: nn.Module, **settings) -> dict[str, str]:
    return {s.fqn: s.reason for s in noble_fx.sites(model, **{"rank": 4, **settings}) if not s.selected}


def test_auto_takes_the_repeated_blocks_and_says_why_not_the_head():
    assert chosen(tiny()) == [f"blocks.{i}.{name}" for i in range(2) for name in BLOCK]
    assert reasons(tiny()) == {"head": "an output head"}


def test_auto_takes_everything_where_nothing_repeats():
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    assert chosen(model) == ["0", "2"]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("attention", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("ffn", ["fc1", "fc2"]),
        (r"[qv]_proj$", ["q_proj", "v_proj"]),
        (lambda site: site.out_features == 32, ["fc1"]),
    ],
)
def test_groups_regexes_and_callables(select, expected):
    assert chosen(tiny(layers=2), select=select) == [f"blocks.{i}.{name}" for i in range(2) for name in expected]


def test_a_list_names_layers_exactly():
    assert chosen(tiny(), select=["blocks.1.fc2"]) == ["blocks.1.fc2"]


def test_the_head_is_taken_when_it_is_named():
    assert "head" not in chosen(tiny(), select="all")
    assert chosen(tiny(), select="head") == ["head"]


def test_exclude_applies_to_every_selection():
    assert "blocks.0.fc1" not in chosen(tiny(), exclude=r"\.0\.")
    assert reasons(tiny(), exclude="fc1")["blocks.0.fc1"] == "matches exclude='fc1'"


def test_a_tied_weight_is_left_out_unless_named():
    model = tiny(width=20)
    model.head.weight = model.embed.weight
    assert reasons(model, select="all")["head"] == "its weight is tied to another module's"
    assert chosen(model, select=["head"]) == ["head"]


def test_a_router_is_left_out():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(16, 8)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)) for _ in range(8))

    assert reasons(Mixture(), select="all")["gate"] == "the router of a mixture of experts"


# --- refusals ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "q_prj"}, r"select='q_prj' matches no linear layer; nearest: 'blocks.0.q_proj'"),
        ({"select": ["blocks.0.q_prj"]}, r"'blocks.0.q_prj', which is no linear layer.*nearest: 'blocks.0.q_proj'"),
        ({"exclude": "qqq"}, "exclude='qqq' matches no linear layer"),
        ({"exclude": ["blocks.9.fc1"]}, "exclude names 'blocks.9.fc1'"),
        ({"rank_pattern": {"zzz": 3}}, "rank_pattern 'zzz' matches no linear layer"),
        ({"select": "fc", "rank": 17}, r"rank 17 does not fit 'blocks.0.fc1' \[32, 16\]: it must be below .* = 16"),
        ({"select": "fc", "rank": 16}, "rank 16 does not fit"),
        ({"rank_pattern": {"fc1": 99}}, "rank 99 does not fit"),
        ({"rank": 99}, "leaves no layer to augment: 12 × rank 99 is not below min"),
        ({"exclude": "."}, "leaves no layer to augment: .*matches exclude"),
        ({"select": lambda site: False}, "leaves no layer to augment"),
        ({"rank": "0.001%"}, "too little for rank 1 at 12 layers"),
        ({"act": "cosnt"}, "act='cosnt' is unknown"),
        ({"rank": 0}, "rank=0 is not a rank"),
    ],
)
def test_a_refusal_names_the_thing_and_leaves_the_model(settings, message):
    model = tiny()
    before = {name: type(module) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        noble_fx.transform(model, **{"rank": 4, **settings})
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("select", ["auto", "fc1"])
def test_an_integer_weight_is_refused(dtype, select):
    model = tiny()
    model.blocks[0].fc1.weight = nn.Parameter(torch.zeros(32, 16, dtype=dtype), requires_grad=False)
    with pytest.raises(ConfigError, match=r"weight of 'blocks.0.fc1' is of dtype .*int8.*exclude="):
        noble_fx.transform(model, rank=4, select=select)
    assert noble_fx.transform(model, rank=4, exclude=r"blocks\.0\.fc1") is not None


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ConfigError, match="has no linear layer"):
        noble_fx.transform(nn.Conv2d(3, 8, 3))


def test_a_preset_selection_passes_over_narrow_layers_and_says_so():
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    assert reasons(model, rank=8) == {"1": "rank 8 is not below min(K, N) = 4"}


def test_sites_of_a_plain_and_of_a_transformed_model_agree():
    before = noble_fx.sites(tiny(), rank=4)
    for model in (noble_fx.transform(tiny(), rank=4), noble_fx.transform(WithOptional().eval(), rank=4)):
        assert [(s.fqn, s.role, s.rank, s.params, s.reason) for s in noble_fx.sites(model)] == [
            (s.fqn, s.role, s.rank, s.params, s.reason) for s in before
        ]


def test_dry_run_changes_nothing():
    model = Tiny()
    sites = noble_fx.transform(model, rank=4, dry_run=True)
    assert sum(site.selected for site in sites) == 12
    assert not any(isinstance(module, noble_fx.NobleBranch) for module in model.modules())

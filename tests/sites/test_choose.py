"""Which layers are found, chosen and refused, and what the reasons say."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.sites.roles import is_router_name, role_from_name
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
    assert not is_router_name("mlp.gate", {"up", "down"})
    assert is_router_name("mlp.router", set())


def test_a_module_with_two_names_is_one_site():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.second = self.first

    (site,) = noble_fx.sites(Twice(), rank=4)
    assert (site.fqn, site.aliases) == ("first", ("second",))
    model = noble_fx.transform(Twice(), rank=4)
    assert model.first is model.second
    assert sum(1 for m in model.modules() if isinstance(m, noble_fx.NobleBranch)) == 1


# --- what cannot carry a branch is listed, with its reason ---


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LSTM(16, 16), "recurrent"),
        (nn.GRUCell(16, 16), "recurrent"),
        (nn.Bilinear(16, 16, 16), "bilinear"),
        (nn.Conv2d(16, 16, 1, padding=1), "1x1 convolution with padding"),
        (torch.nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), "parametrized"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_listed_with_its_reason(module, reason):
    model = nn.ModuleDict({"odd": module, "fine": nn.Linear(16, 16)})
    assert reason in reasons(model)["odd"]
    assert chosen(model) == ["fine"]
    with pytest.raises(ConfigError, match="select names 'odd', which cannot carry a branch"):
        noble_fx.transform(model, rank=4, select=["odd"])


def test_a_stacked_expert_weight_is_listed():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Parameter(torch.zeros(4, 16, 32))
            self.out = nn.Linear(16, 16)

    found = {site.fqn: site for site in noble_fx.sites(Experts(), rank=4)}
    assert found["down"].kind == "stacked parameter [4, a, b]"
    assert "no layer to carry a branch" in found["down"].reason


def test_a_replaced_forward_is_left_alone():
    layer = nn.Linear(16, 16)
    layer.forward = layer.forward
    assert "replaced on the instance" in reasons(nn.Sequential(layer, nn.Linear(16, 16)))["0"]


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


def test_a_quantized_layer_is_refused_and_listed():
    plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    assert reasons(model) == {"0": "quantized: its weight is packed", "2": "quantized: its weight is packed"}
    with pytest.raises(ConfigError, match=r"weight of '0' is quantized: its weight is packed; .*before quantizing it"):
        noble_fx.transform(model, rank=4)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ConfigError, match="has no linear layer"):
        noble_fx.transform(nn.Conv2d(3, 8, 3))


def test_a_preset_selection_passes_over_narrow_layers_and_says_so():
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    assert reasons(model, rank=8) == {"1": "rank 8 is not below min(K, N) = 4"}


# --- ranks ---


def test_rank_pattern_and_shares():
    found = {s.fqn: s.rank for s in noble_fx.transform(tiny(), rank=0.25, rank_pattern={"fc1$": 7}, dry_run=True)}
    assert (found["blocks.0.q_proj"], found["blocks.1.fc1"], found["blocks.1.fc2"]) == (4, 7, 4)


@pytest.mark.parametrize("budget", ["10%", "25%", "60%"])
@pytest.mark.parametrize("act", ["cosnet", "gelu", lambda rank: nn.Linear(rank, rank)])
def test_a_budget_is_used_and_not_exceeded(budget, act):
    model = tiny(width=32)
    base = sum(p.numel() for p in model.parameters())
    allowed = base * float(budget[:-1]) / 100
    found = [s for s in noble_fx.transform(model, rank=budget, act=act, dry_run=True) if s.selected]
    noble_fx.transform(model, rank=budget, act=act)
    added = sum(p.numel() for p in model.parameters()) - base
    assert added == sum(s.params for s in found)
    assert added <= allowed
    larger = max(s.rank for s in found) + 1
    if larger < 16:  # one more would not have fitted
        again = noble_fx.transform(tiny(width=32), rank=larger, act=act, dry_run=True)
        assert sum(s.params for s in again) > allowed


def test_sites_of_a_plain_and_of_a_transformed_model_agree():
    before = noble_fx.sites(tiny(), rank=4)
    for model in (noble_fx.transform(tiny(), rank=4), noble_fx.transform(WithOptional().eval(), rank=4)):
        assert [(s.fqn, s.role, s.rank, s.params, s.reason) for s in noble_fx.sites(model)] == [
            (s.fqn, s.role, s.rank, s.params, s.reason) for s in before
        ]


# --- roles ---


@pytest.mark.parametrize(
    ("fqn", "shape", "role"),
    [
        ("model.layers.0.self_attn.q_proj", (8, 8), "attention.q"),
        ("model.layers.0.self_attn.o_proj", (8, 8), "attention.out"),
        ("model.layers.0.mlp.gate_proj", (8, 32), "ffn.gate"),
        ("model.layers.0.mlp.up_proj", (8, 32), "ffn.in"),
        ("model.layers.0.mlp.down_proj", (32, 8), "ffn.out"),
        ("transformer.h.0.attn.c_attn", (8, 24), "attention.qkv"),
        ("transformer.h.0.attn.c_proj", (8, 8), "attention.out"),
        ("transformer.h.0.mlp.c_fc", (8, 32), "ffn.in"),
        ("transformer.h.0.mlp.c_proj", (32, 8), "ffn.out"),
        ("encoder.layer.0.attention.self.query", (8, 8), "attention.q"),
        ("encoder.layer.0.attention.output.dense", (8, 8), "attention.out"),
        ("encoder.layer.0.intermediate.dense", (8, 32), "ffn.in"),
        ("encoder.layer.0.output.dense", (32, 8), "ffn.out"),
        ("block.0.layer.0.SelfAttention.k", (8, 8), "attention.k"),
        ("block.0.layer.1.DenseReluDense.wo", (32, 8), "ffn.out"),
        ("block.0.layer.1.DenseReluDense.wi_0", (8, 32), "ffn.gate"),
        ("layers.0.attention.wo", (8, 8), "attention.out"),
        ("layers.0.feed_forward.w1", (8, 32), "ffn.gate"),
        ("blocks.0.mlp.0", (8, 32), "ffn.in"),
        ("blocks.0.mlp.2", (32, 8), "ffn.out"),
        ("transformer.layers.0.linear2", (32, 8), "ffn.out"),
        ("embed_tokens_proj", (8, 8), "other"),
    ],
)
def test_roles_from_names(fqn, shape, role):
    assert role_from_name(fqn, *shape) == role


class Unnamed(nn.Module):
    """Names that say nothing: attention by matmul and softmax, then a gated FFN."""

    def __init__(self):
        super().__init__()
        self.a1, self.a2, self.a3, self.a4 = (nn.Linear(16, 16) for _ in range(4))
        self.b1, self.b2, self.b3 = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = (self.a1(x) @ self.a2(x).transpose(-1, -2)) * 0.25
        x = x + self.a4(scores.softmax(dim=-1) @ self.a3(x))
        return x + self.b3(nn.functional.silu(self.b1(x)) * self.b2(x))


def test_roles_from_dataflow_where_names_are_silent():
    found = {site.fqn: site.role for site in noble_fx.sites(Unnamed(), rank=4)}
    assert found == {
        "a1": "attention.q",
        "a2": "attention.k",
        "a3": "attention.v",
        "a4": "attention.out",
        "b1": "ffn.gate",
        "b2": "ffn.in",
        "b3": "ffn.out",
    }


def test_roles_from_dataflow_through_fused_attention():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 48), nn.Linear(16, 16)
            self.c, self.d = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.a(x).chunk(3, dim=-1)
            x = x + self.b(nn.functional.scaled_dot_product_attention(q, k, v))
            return x + self.d(nn.functional.gelu(self.c(x)))

    found = {site.fqn: site.role for site in noble_fx.sites(Fused(), rank=4)}
    assert found == {"a": "attention.qkv", "b": "attention.out", "c": "ffn.in", "d": "ffn.out"}


def test_dry_run_changes_nothing():
    model = Tiny()
    sites = noble_fx.transform(model, rank=4, dry_run=True)
    assert sum(site.selected for site in sites) == 12
    assert not any(isinstance(module, noble_fx.NobleBranch) for module in model.modules())

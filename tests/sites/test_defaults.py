"""What "auto" passes over inside repeated blocks, and what it takes there."""

import pytest
from torch import nn

import noble_fx
from noble_fx.sites.defaults import with_defaults
from noble_fx.sites.layer_maps import LinearMap
from noble_fx.sites.site import Site

CONVOLUTION = "a 1x1 convolution among larger ones"


def reasons(model: nn.Module, **settings) -> dict[str, str]:
    return {site.fqn: "" if site.selected else site.reason for site in noble_fx.sites(model, rank=4, **settings)}


def bottleneck(**more: nn.Module) -> nn.Module:
    return nn.ModuleDict(
        {"down": nn.Conv2d(16, 16, 1), "conv": nn.Conv2d(16, 16, 3), "up": nn.Conv2d(16, 16, 1), **more}
    )


def test_the_1x1_convolutions_of_a_cnn_stay_out_of_auto_alone():
    model = nn.ModuleDict({"layer1": nn.Sequential(bottleneck(), bottleneck()), "fc": nn.Linear(16, 16)})
    assert reasons(model)["layer1.0.down"] == f"{CONVOLUTION}; select='all' or its name takes it"
    assert not any(reason for name, reason in reasons(model, select="all").items() if "conv" in name or "up" in name)
    assert reasons(model, select=["layer1.1.up"])["layer1.1.up"] == ""


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_in_the_block_of_an_attention_they_are_linear_layers(kind):
    def conformer():
        attention = nn.ModuleDict({name: nn.Linear(16, 16) for name in ("q_proj", "k_proj", "v_proj", "o_proj")})
        convolutions = {"pointwise": kind(16, 32, 1), "depthwise": kind(16, 16, 3, groups=16)}
        return nn.ModuleDict({"self_attn": attention, **convolutions})

    assert set(reasons(nn.ModuleList([conformer(), conformer()])).values()) == {""}


def test_where_no_convolution_is_larger_they_are_linear_layers():
    model = nn.Sequential(nn.Conv1d(16, 32, 1), nn.ReLU(), nn.Conv1d(32, 16, 1))  # PointNet
    assert set(reasons(model).values()) == {""}
    blocks = nn.ModuleList(nn.ModuleDict({"fc1": nn.Conv2d(16, 32, 1), "fc2": nn.Conv2d(32, 16, 1)}) for _ in range(2))
    assert set(reasons(blocks).values()) == {""}  # PoolFormer


@pytest.mark.parametrize("role", ["embedding", "position", "modulation"])
def test_roles_that_are_no_part_of_what_a_block_computes(role):
    model = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})])
    maps = [
        LinearMap(Site(name, given, "Linear", 16, 16, 0, False, "", 0), model.get_submodule(name), True)
        for name, given in (("0.a", role), ("0.b", "ffn.in"))
    ]
    one, other = with_defaults(model, maps)
    assert one.passed_over is not None
    assert other.passed_over is None

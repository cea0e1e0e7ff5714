"""Routers of mixtures of experts, by name, by class, and by the experts beside them."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.sites.blocks import ROUTER
from noble_fx.sites.routers import is_router, is_router_class


class Mixture(nn.Module):
    """Experts beside whatever routes them; the names are those of a model that is asked about."""

    def __init__(self, count: int = 32, stacked: bool = False, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        if stacked:
            self.experts = nn.Module()
            self.experts.gate_up_proj = nn.Parameter(torch.zeros(count, 16, 24))
        else:
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16)) for _ in range(count))


def inside(**parts: nn.Module) -> nn.Module:
    return nn.ModuleDict(parts)


def named(name: str, **parts: nn.Module) -> nn.Module:
    return type(name, (nn.ModuleDict,), {})(parts)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("fqn", "parts"),
    [
        ("0.gate", {"gate": nn.Linear(16, 32)}),
        ("0.router.classifier", {"router": inside(classifier=nn.Linear(16, 32))}),  # Switch, NLLB
        ("0.router.gate", {"router": inside(gate=nn.Linear(16, 32))}),  # torchtitan
        ("0.router.layer", {"router": inside(layer=nn.Linear(16, 32))}),  # JetMoE, DBRX
        ("0.gate.wg", {"gate": inside(wg=nn.Linear(16, 32))}),  # HunYuan
        ("0.chooser", {"chooser": nn.Linear(16, 32)}),  # as many outputs as experts
        ("0.chooser.proj", {"chooser": inside(proj=nn.Linear(16, 32))}),
        ("0.chooser.down", {"chooser": named("ZayaRouter", down=nn.Linear(16, 24))}),
        ("0.shared_expert_gate", {"shared_expert_gate": nn.Linear(16, 8)}),
    ],
)
def test_a_router_is_left_out_and_its_experts_are_not(fqn, parts, stacked):
    model = nn.Sequential(Mixture(stacked=stacked, **parts), Mixture(stacked=stacked, **parts))
    sites = {site.fqn: site for site in noble_fx.sites(model, rank=4, select="all")}
    assert (sites[fqn].role, sites[fqn].selected, sites[fqn].reason) == ("router", False, ROUTER.reason)
    assert all(site.selected for name, site in sites.items() if ".experts." in name and not stacked)


def test_what_looks_like_a_router_and_is_none():
    gate, up = nn.Linear(16, 32), nn.Linear(16, 24)
    assert not is_router(inside(mlp=inside(gate=gate, up=up)), "mlp.gate", 32)  # a gated FFN
    mixture = Mixture(shared_expert=inside(up=nn.Linear(16, 32)), q_proj=nn.Linear(16, 16))
    assert not is_router(mixture, "shared_expert.up", 32)
    assert not is_router(mixture, "q_proj", 16)
    assert not is_router(mixture, "experts.0.0", 24)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("PhimoeTopKRouter", True),
        ("JetMoeTopKGating", True),
        ("MoEGate", True),
        ("SwitchTransformersTop1Router", True),
        ("ZayaRouterMLP", True),
        ("MixtralSparseMoeBlock", False),
        ("LlamaMLP", False),
    ],
)
def test_a_class_that_calls_itself_a_router_is_one(name, answer):
    assert is_router_class(type(name, (nn.Linear,), {})) is answer


def test_a_model_is_no_router_of_its_own():
    model = type("PromptRouter", (nn.Sequential,), {})(nn.Linear(16, 32), nn.Linear(32, 16))
    assert all(site.selected for site in noble_fx.sites(model, rank=4))


def test_a_router_that_could_carry_no_branch_is_called_one_all_the_same():
    class Llama4Router(nn.Linear):
        def forward(self, x):
            return super().forward(x).softmax(-1), x

    sites = {site.fqn: site for site in noble_fx.sites(Mixture(router=Llama4Router(16, 32)), rank=4)}
    assert sites["router"].reason.startswith(f"{ROUTER.reason}; and ")
    assert "makes a tuple" in sites["router"].reason

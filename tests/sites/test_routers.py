"""Routers by name and by class."""

from torch import nn

from noble_fx.sites.routers import is_router_class, is_router_name


def test_a_gate_is_a_router_beside_experts_alone():
    assert is_router_name("mlp.gate", {"experts"})
    assert not is_router_name("mlp.gate", {"up", "down"})
    assert is_router_name("mlp.router", set())


def test_a_class_that_calls_itself_a_router_is_one():
    assert is_router_class(type("PhimoeTopKRouter", (nn.Linear,), {}))
    assert not is_router_class(nn.Linear)

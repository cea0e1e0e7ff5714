"""Routers: the maps whose result says which expert of a mixture computes a token."""

from __future__ import annotations

import re

_ROUTER = re.compile(r"router|gate|gating|\w*(expert|moe)_gate|router_proj|gate_network|wg")


def is_router_class(cls: type) -> bool:
    """True for a class that calls itself a router (Llama4Router, PhimoeTopKRouter)."""
    return "Router" in cls.__name__


def is_router_name(fqn: str, siblings: set[str]) -> bool:
    """True for the gate of a mixture of experts: a router's name, beside experts or unmistakable."""
    last = fqn.rsplit(".", 1)[-1]
    if not _ROUTER.fullmatch(last):
        return False
    return "experts" in siblings or last not in ("gate", "gating", "wg")

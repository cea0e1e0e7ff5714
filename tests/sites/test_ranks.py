"""The rank of every chosen site: numbers, shares, budgets."""

import pytest
from torch import nn

import noble_fx
from tests.models import tiny


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

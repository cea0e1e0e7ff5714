"""Each parameter where it helps most, but no layer far below an even share."""

import itertools

import pytest

from noble_fx.compressing.allocation.base import DENSE
from noble_fx.compressing.allocation.marginal import marginal
from noble_fx.compressing.allocation.uniform import uniform
from tests.compressing.allocation.layers import LAYERS, layer


def total_lost(layers, ranks):
    return sum(each.lost(ranks[each.name]) for each in layers)


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 0.9])
def test_better_than_an_even_share(keep):
    assert total_lost(LAYERS, marginal(LAYERS, keep)) < total_lost(LAYERS, uniform(LAYERS, keep))


@pytest.mark.parametrize("keep", [0.4, 0.55, 0.7, 0.85])
def test_near_the_best_of_all_combinations(keep):
    """Against every combination of ranks above the floors: at most one step of one layer is left on the table."""
    layers = [layer("a", decay=0.3, step=4), layer("b", decay=0.03, step=4), layer("c", 96, 48, decay=0.1, step=4)]
    budget = keep * sum(each.dense for each in layers)
    ranks = marginal(layers, keep)
    choices = [
        [*(r for r in each.ranks if each.cost(r) >= 0.25 * keep * each.dense - 4 * 144), DENSE] for each in layers
    ]
    best = min(
        sum(each.lost(rank) for each, rank in zip(layers, combination, strict=True))
        for combination in itertools.product(*choices)
        if sum(each.cost(rank) for each, rank in zip(layers, combination, strict=True)) <= budget
    )
    step = max(each.lost(r) - each.lost(r + 4) for each in layers for r in each.ranks if r >= 8 and r + 4 in each.ranks)
    assert total_lost(layers, ranks) <= best + step


def test_what_costs_much_to_lose_becomes_dense_again():
    layers = [layer("steep", decay=0.5), layer("steeper", decay=0.6), layer("flat", decay=0.0)]
    ranks = marginal(layers, 0.7)
    assert ranks["flat"] == DENSE
    assert ranks["steep"] != DENSE


def test_a_fragile_role_keeps_most_of_an_even_share():
    def pair(role):
        return [layer("v", 256, 256, decay=2.0, role=role), layer("other", 256, 256, decay=0.001)]

    fragile, robust = (marginal(pair(role), 0.5)["v"] for role in ("attention.v", "attention.q"))
    assert fragile == 48  # three quarters of 64, which is half of 256 x 256
    assert robust == 16


def test_nothing_is_spent_where_nothing_is_lost():
    one = layer("a", decay=50.0)
    assert one.lost(8) == 0.0
    assert marginal([one], 0.9) == {"a": 8}

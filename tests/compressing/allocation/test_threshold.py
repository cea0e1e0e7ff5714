"""One threshold on normalised singular values."""

import itertools

import pytest

from noble_fx.compressing.allocation.base import DENSE
from noble_fx.compressing.allocation.threshold import threshold
from tests.compressing.allocation.layers import LAYERS, layer


@pytest.mark.parametrize("keep", [0.2, 0.35, 0.5, 0.7, 0.9])
def test_the_budget_is_hit_from_below(keep):
    """Found by bisection: with one more value of any layer kept it would be more than the budget."""
    ranks = threshold(LAYERS, keep)
    dense = sum(each.dense for each in LAYERS)
    spent = sum(each.cost(ranks[each.name]) for each in LAYERS)
    largest_step = max(8 * (each.outputs + each.inputs) for each in LAYERS)
    assert keep * dense - 2 * largest_step <= spent <= keep * dense


def test_ranks_fall_with_the_budget():
    found = [threshold(LAYERS, keep) for keep in (0.9, 0.7, 0.5, 0.3)]
    for more, less in itertools.pairwise(found):
        for each in LAYERS:
            assert each.cost(less[each.name]) <= each.cost(more[each.name])


def test_a_matrix_without_a_decay_stays_dense():
    ranks = threshold([layer("steep", decay=0.5), layer("flat", decay=0.0)], 0.7)
    assert ranks["flat"] == DENSE
    assert ranks["steep"] == 8

"""What holds for every way to spread a budget."""

import pytest

from noble_fx.compressing.allocation.base import DENSE
from noble_fx.compressing.allocation.table import ALLOCATIONS
from noble_fx.errors import ConfigError
from tests.compressing.allocation.layers import LAYERS, layer


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("keep", [0.2, 0.35, 0.5, 0.7, 0.9, 0.99])
def test_within_the_budget_at_ranks_that_save(name, keep):
    ranks = ALLOCATIONS[name](LAYERS, keep)
    assert list(ranks) == [each.name for each in LAYERS]
    assert sum(each.cost(ranks[each.name]) for each in LAYERS) <= keep * sum(each.dense for each in LAYERS)
    for each in LAYERS:
        assert ranks[each.name] == DENSE or ranks[each.name] in each.ranks


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_more_budget_loses_no_more(name):
    def lost(keep):
        ranks = ALLOCATIONS[name](LAYERS, keep)
        return sum(each.lost(ranks[each.name]) for each in LAYERS)

    assert lost(0.9) < lost(0.6) < lost(0.3)


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_too_little(name):
    with pytest.raises(ConfigError, match="least ranks need"):
        ALLOCATIONS[name](LAYERS, 0.02)


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_layers_that_nothing_saves_stay_dense(name):
    layers = [layer("a"), layer("b", 2, 2)]
    ranks = ALLOCATIONS[name](layers, 0.6)
    assert ranks["b"] == DENSE
    assert ranks["a"] != DENSE

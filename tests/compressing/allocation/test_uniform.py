"""The same share of every layer."""

from noble_fx.compressing.allocation.uniform import uniform
from tests.compressing.allocation.layers import layer


def test_every_layer_keeps_the_same_share():
    layers = [layer("a", 512, 512, decay=0.5), layer("b", 1024, 512, decay=0.001)]
    ranks = uniform(layers, 0.5)
    assert ranks == {"a": 128, "b": 168}
    for each in layers:
        assert 0.48 < each.cost(ranks[each.name]) / each.dense <= 0.5


def test_a_least_rank_above_its_share_is_paid_by_the_others():
    layers = [layer("small", 20, 20), layer("large", 256, 256)]
    keep = 0.3
    ranks = uniform(layers, keep)
    assert ranks["small"] == 8
    assert sum(each.cost(ranks[each.name]) for each in layers) <= keep * sum(each.dense for each in layers)

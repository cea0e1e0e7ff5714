"""A layer's ranks and their price, and budgets that cannot be."""

import pytest

from noble_fx.compressing.allocation.base import DENSE, check_budget
from noble_fx.errors import ConfigError
from tests.compressing.allocation.layers import LAYERS, layer


def test_prices():
    one = layer("a", 64, 32, extra=64)
    assert one.dense == 2048
    assert one.cost(8) == 8 * 96 + 64
    assert one.cost(DENSE) == 2048
    assert one.lost(DENSE) == 0.0
    assert list(one.ranks) == [8, 16]


def test_within():
    one = layer("a", 64, 64)
    assert one.within(8 * 128) == 8
    assert one.within(24 * 128 + 5) == 24
    assert one.within(10) == 8
    assert one.within(4096) == DENSE
    assert layer("b", 2, 2).within(3) == DENSE


def test_cut_to():
    one = layer("a", 64, 64)
    assert [one.cut_to(rank) for rank in (3, 8, 30, 31, 32, 60)] == [8, 8, 24, 24, DENSE, DENSE]


def test_a_budget_that_cannot_be_met_says_which_can():
    with pytest.raises(ConfigError, match=r"keep=0.05 of the .* parameters of 5 layers .* keep at least 0\.1"):
        check_budget(LAYERS, 0.05)
    assert check_budget(LAYERS, 0.5) == 0.5 * sum(each.dense for each in LAYERS)

"""Bases by name, and what a file says of one."""

import pytest

from noble_fx.bases.kinds import KINDS, base_class, base_of
from noble_fx.bases.low_rank import LowRank
from noble_fx.errors import ConfigError


def test_a_kind_goes_by_its_name():
    assert base_class("factorized") is LowRank
    assert all(name == kind.kind for name, kind in KINDS.items())


@pytest.mark.parametrize("name", ["factorised", None, 3])
def test_an_unknown_kind_is_refused_with_the_names(name):
    with pytest.raises(ConfigError, match="use one of factorized"):
        base_class(name)


def test_what_was_described_comes_back():
    base = LowRank(12, 20, 3)
    base.error, base.method = 0.5, "activations"
    again = base_of(base.described(), 12, 20)
    assert again.described() == base.described()
    assert next(again.parameters()).is_meta


@pytest.mark.parametrize("rank", [None, 0, True, 2.5, "8"])
def test_a_rank_that_is_none_is_refused(rank):
    with pytest.raises(ConfigError, match="rank="):
        base_of({"kind": "factorized", "rank": rank}, 12, 20)

"""Bases by name, and what a file says of one."""

import pytest

from noble_fx.bases.kinds import KINDS, base_class, base_of, check_base
from noble_fx.bases.low_rank import LowRank
from noble_fx.config import NobleConfig
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


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"base": "factorised", "base_rank": 4}, "base='factorised' is unknown; nearest: 'factorized'; use one of"),
        ({"base": "factorized"}, "base='factorized' needs a rank"),
        ({"base": "factorized", "base_rank": 4, "base_settings": {"blocks": 2}}, "have no setting 'blocks'"),
        ({"base": "block_diagonal", "base_rank": 4, "base_settings": {"blocks": 1}}, "blocks=1 of base="),
    ],
)
def test_settings_that_no_layer_could_have_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        check_base(NobleConfig(**settings))


@pytest.mark.parametrize(
    "settings", [{}, {"base": "ordered"}, {"base": "spectral"}, {"base": "ordered", "base_rank": 3}]
)
def test_a_base_of_full_width_needs_no_rank(settings):
    check_base(NobleConfig(**settings))

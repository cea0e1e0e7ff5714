"""Branches that are not at hand are built without values, to be counted."""

import noble_fx
from noble_fx import NobleConfig
from noble_fx.explaining.planned import planned_entries
from tests.models import tiny, transformed


def test_they_cost_what_the_live_ones_do():
    model = transformed("modules")
    entries = planned_entries(noble_fx.sites(model), "carried", NobleConfig(rank=4))
    live = noble_fx.explain(model).entries
    assert [(e.act, e.base_flops, e.branch_flops) for e in entries] == [
        (e.act, e.base_flops, e.branch_flops) for e in live
    ]


def test_without_settings_nobody_knows_what_they_cost():
    sites = noble_fx.sites(tiny(), rank=4)
    entries = planned_entries(sites, "planned", None, act="mine")
    assert {(e.state, e.act, e.branch_flops) for e in entries} == {("planned", "mine", None), ("left out", "", 0)}
    assert planned_entries(sites, "planned", NobleConfig(act="no_such_sigma"), act="x")[0].branch_flops is None

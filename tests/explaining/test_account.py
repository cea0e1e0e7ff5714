"""The account as data: what it derives, and that all of it is plain JSON."""

import json

import noble_fx
from noble_fx.explaining.account import Account, SiteAccount
from noble_fx.sites.site import Site
from tests.models import tiny, transformed


def entry(name: str, state: str = "carried", **settings: object) -> SiteAccount:
    site = {"role": "other", "kind": "Linear", "in_features": 4, "out_features": 6, "rank": 2, "selected": True}
    own = {name: settings.pop(name) for name in ("act", "branch_flops", "no_kernel") if name in settings}
    return SiteAccount(Site(name, **{**site, "reason": "why", "params": 20, **settings}), state, base_flops=48, **own)


def test_what_is_left_out_and_eager_by_reason():
    entries = entry("a.0"), entry("a.1", unfused="slow"), entry("b", "left out"), entry("c", "left out", reason="no")
    account = Account("m", entries, 10, 20, {})
    assert account.left_out == {"why": ("b",), "no": ("c",)}
    assert account.eager == {"slow": ("a.1",)}
    assert [each.way for each in account.entries] == ["fused", "eager", "", ""]
    assert [each.pattern for each in account.chosen] == ["a.*", "a.*"]


def test_flops_add_up_unless_one_is_unknown():
    known = Account("m", (entry("a", branch_flops=5), entry("b", branch_flops=6)), 0, 0, {})
    assert (known.base_flops, known.branch_flops) == (96, 11)
    assert Account("m", (entry("a", branch_flops=None),), 0, 0, {}).branch_flops is None


def test_parameters_of_branches_that_would_be():
    entries = entry("a", "planned"), entry("b", "left out")
    assert Account("m", entries, 0, 0, {}, transformed=False).planned_params == 20
    assert Account("m", (entry("a"),), 0, 7, {}).planned_params == 7


def test_everything_is_plain_json():
    for model in (transformed("fx"), tiny(width=80), noble_fx.transform(tiny(), rank=4, fuse=False)):
        told = noble_fx.explain(model).to_dict()
        assert json.loads(json.dumps(told)) == told
        site = told["sites"][0]
        assert site["pattern"] == "blocks.*.q_proj"
        assert {"state", "act", "base_flops", "branch_flops", "way", "kernels", "no_kernel", "rank"} <= site.keys()
    assert told["eager"] == {"fuse=False": [site["fqn"] for site in told["sites"][:-1]]}


def test_each_program_has_its_passes_and_operators():
    (program,) = noble_fx.explain(transformed("fx")).to_dict()["programs"]
    passes = {each["name"]: each for each in program["passes"]}
    assert passes["insert_branch"]["rewrites"] == passes["insert_branch"]["hits"] == 12
    assert passes["insert_branch"]["rewrite"].startswith("linear(x, w, b)  ->  ")
    assert passes["share_input"]["skips"] == {"no bias here, one there": 2, "reads x alone": 6}
    assert program["operators_before"]["NobleLinear"] == 12
    assert program["operators"]["noble_fx::linear"] == 8
    assert program["groups"] == [2, 2]

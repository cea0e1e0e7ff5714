"""What is another between two accounts."""

import json

import pytest

import noble_fx
from noble_fx.explaining.difference import difference
from tests.models import tiny, transformed


def explained(**settings):
    return noble_fx.explain(transformed("modules", **settings))


def test_equal_ones():
    none = explained() - explained()
    assert not none
    assert str(none) == "Tiny → Tiny: no difference"
    assert none.to_dict() == {"before": "Tiny", "after": "Tiny", "settings": {}, "totals": {}, "sites": []}


def test_minus_is_diff():
    one, other = explained(), explained(rank=8)
    assert one - other == one.diff(other) == difference(one, other)
    with pytest.raises(TypeError):
        one - 3


def test_another_rank():
    other = explained() - explained(rank=8)
    assert other.settings == {"rank": (4, 8)}
    assert other.totals["parameters in branches"] == (2176, 4736)
    site = other.sites[0]
    assert (site.fqn, site.what) == ("blocks.0.q_proj", "changed")
    assert site.fields == {"rank": (4, 8), "params": (160, 352), "FLOPs": (288, 640)}
    assert "changed blocks.*.q_proj ×2: rank 4 → 8; params 160 → 352; FLOPs 288 → 640" in str(other)
    assert json.loads(json.dumps(other.to_dict())) == other.to_dict()


def test_sigma_eager_and_reason():
    fields = (explained() - explained(act="gelu", fuse=False, select="all")).sites[0].fields
    assert fields["σ"] == ("cosnet", "gelu")
    assert fields["way"] == ("fused", "eager")
    assert fields["eager because"] == (None, "fuse=False")
    assert fields["reason"] == ("in a repeated block", "select='all'")


def test_sites_come_and_go():
    ffn, attention = explained(select="ffn"), explained(select="attention")
    what = {site.fqn: site.what for site in (ffn - attention).sites}
    assert (what["blocks.0.fc1"], what["blocks.1.q_proj"]) == ("removed", "added")
    assert "head" not in what
    one = noble_fx.explain(noble_fx.transform(tiny(layers=1), rank=4, seed=0))
    two = noble_fx.explain(noble_fx.transform(tiny(layers=2), rank=4, seed=0))
    assert {(site.fqn, site.what) for site in (one - two).sites} == {
        (site.fqn, "new") for site in two.sites if site.fqn.startswith("blocks.1")
    }
    assert {site.what for site in (two - one).sites} == {"gone"}


def test_names_are_never_markup():
    before, after = (noble_fx.explain(noble_fx.transform(hostile(), rank=rank)) for rank in (2, 3))
    text = str(before - after)
    assert "changed a[red]\\x1b[31m\\nb ×1: rank 2 → 3" in text
    assert "\x1b" not in text


def hostile():
    from torch import nn

    model = nn.Module()
    model.add_module("a[red]\x1b[31m\nb", nn.Linear(8, 8))
    return model

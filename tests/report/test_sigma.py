import re

import pytest
import torch

import noble_fx
from noble_fx.report import sigma
from noble_fx.report.sigma import sigmas
from tests.models import Idle, tiny


def explained(**settings):
    return noble_fx.explain(noble_fx.transform(tiny(), **{"rank": 4, "seed": 0, **settings}))


def test_a_branch_as_it_was_drawn_has_both_curves_in_one_place():
    found = sigmas(explained())
    assert [each.site for each in found.curves][:2] == ["blocks.0.q_proj", "blocks.0.k_proj"]
    assert (len(found.curves), found.left_out, found.without) == (12, 0, "")
    for each in found.curves:
        assert each.before == each.now
        assert each.moved == {"frequency": 0.0, "phase": 0.0}
        assert len(each.now) == len(each.channels) == 4


def test_what_was_trained_has_moved():
    made = explained()
    branch = made.branches["blocks.0.fc1"]
    with torch.no_grad():
        branch.act.first.phase.add_(0.5)
    (fc1,) = [each for each in sigmas(made).curves if each.site == "blocks.0.fc1"]
    assert fc1.before != fc1.now
    assert fc1.moved["phase"] == pytest.approx(0.25)  # of two cosines, one
    assert fc1.moved["frequency"] == 0
    assert branch.origin is None  # looking changes nothing


def test_the_curve_is_the_activation():
    made = explained(act="gelu")
    curve = sigmas(made).curves[0]
    points = [tuple(map(float, each.split())) for each in re.split("[ML]", curve.now[0])[1:]]
    assert points[0][0] == 0
    assert points[-1][0] == sigma.WIDTH
    h = torch.linspace(-3, 3, len(points))
    value = torch.nn.functional.gelu(h)
    height = (curve.high - value) / (curve.high - curve.low) * sigma.HEIGHT
    assert [y for _, y in points] == pytest.approx(height.tolist(), abs=0.06)
    assert curve.moved == {}


def test_no_seed_no_start():
    found = sigmas(explained(seed=None))
    assert found.curves[0].before == []
    assert "without a seed" in found.curves[0].without


def test_an_activation_of_ones_own_is_drawn_too():
    assert len(sigmas(explained(act=Idle)).curves[0].now) == 4


def test_why_there_are_none():
    with torch.device("meta"):
        assert sigmas(explained()).without == "the model is on the meta device and has no values"
    assert sigmas(noble_fx.explain(tiny())).without == "there is no branch that could be drawn"


def test_many_sites_are_the_first_and_the_last_of_each_kind(monkeypatch):
    monkeypatch.setattr(sigma, "PLOTS", 7)
    found = sigmas(noble_fx.explain(noble_fx.transform(tiny(layers=3), rank=4, seed=0)))
    assert [each.site for each in found.curves][-1] == "blocks.2.q_proj"
    assert found.left_out == 11

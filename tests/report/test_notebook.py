import re
import sys

import pytest
import torch

import noble_fx
from noble_fx.report import notebook, templates
from noble_fx.report.notebook import still
from noble_fx.report.picture import picture
from tests.diagrams.names import explanation
from tests.models import WithOptional, tiny, transformed


def test_a_notebook_shows_the_layers_and_the_block():
    html = noble_fx.explain(transformed("fx"))._repr_html_()
    assert "12 of 13 linear maps carry a branch." in html
    assert html.count("<tr") == 1 + 7
    assert html.count("<rect") == 13
    assert "<script" not in html
    assert not re.search("(?:src|href)=", html)
    assert len(html) < 20_000


def test_it_is_small_for_a_large_model():
    with torch.device("meta"):
        model = noble_fx.transform(WithOptional(layers=30), rank=4)
    assert len(noble_fx.explain(model)._repr_html_()) < 20_000


def test_boxes_do_not_lie_on_each_other():
    for model in (transformed("fx"), noble_fx.transform(WithOptional(), rank=4)):
        laid = still(picture(noble_fx.explain(model)))
        assert all(box.x >= 0 and box.y >= 0 for box in laid.boxes)
        for at, one in enumerate(laid.boxes):
            for other in laid.boxes[:at]:
                apart = abs(one.x - other.x) >= notebook.BOX_WIDTH or abs(one.y - other.y) >= notebook.BOX_HEIGHT
                assert apart, (one, other)


def test_a_plain_model_and_one_without_layers():
    assert "Not transformed." in noble_fx.explain(tiny())._repr_html_()
    assert "0 of 0" in noble_fx.explain(torch.nn.ReLU())._repr_html_()


def test_names_are_text():
    html = explanation()._repr_html_()
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "<b>bold" not in html
    assert "\x1b" not in html


@pytest.mark.parametrize("missing", ["jinja2", "pygments"])
def test_without_the_packages_a_notebook_shows_the_text(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    templates.templates.cache_clear()
    assert noble_fx.explain(tiny())._repr_html_() is None


def test_without_numpy_there_is_no_picture(monkeypatch):
    import networkx as nx

    def missing(*args, **kwargs):
        raise ImportError("No module named 'numpy'")

    monkeypatch.setattr(nx, "multipartite_layout", missing)
    assert "<svg" not in noble_fx.explain(transformed("fx"))._repr_html_()


def test_a_large_block_is_for_the_page(monkeypatch):
    monkeypatch.setattr(notebook, "NODES", 5)
    assert "<svg" not in noble_fx.explain(transformed("fx"))._repr_html_()

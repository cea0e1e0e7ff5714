"""The page as a file, and what a person does with it in a browser."""

import json
import re
import sys

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.errors import ConfigError
from noble_fx.report import page as pages
from noble_fx.report import templates
from tests.diagrams.names import explanation
from tests.models import WithOptional, tiny, transformed


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "model.html"
    noble_fx.explain(transformed("fx")).to_html(path)
    return path


def text_of(explained, tmp_path) -> str:
    path = tmp_path / "model.html"
    explained.to_html(path)
    return path.read_text(encoding="utf-8")


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_page_is_one_file_that_names_no_other(file):
    assert [path.name for path in file.parent.iterdir()] == ["model.html"]
    text = file.read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert addresses
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == []
    assert "Permission is hereby granted, free of charge" in text  # the licence of what lays the picture out


def test_the_first_screen_says_what_carries_a_branch_what_it_costs_and_what_runs_on_a_gpu(file):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", file.read_text(encoding="utf-8").split('id="layers"')[0]))
    assert "12 of 13 linear maps carry a branch." in text
    assert "Without a branch 1 an output head head" in text
    assert "Parameters +43.4% 5,012 + 2,176" in text
    assert "12 Fused, by generated kernels blocks.*.q_proj ×2" in text


def test_the_same_model_is_the_same_page(file, tmp_path):
    assert text_of(noble_fx.explain(transformed("fx")), tmp_path) == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["model", "model.pdf", "html", ".html"])
def test_another_ending_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"does not end in \.html"):
        noble_fx.explain(tiny()).to_html(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"cannot write beside .*file/x\.html"):
        noble_fx.explain(tiny()).to_html(tmp_path / "file" / "x.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match="folder"):
        noble_fx.explain(tiny()).to_html(tmp_path / "folder.html")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_page_replaces_an_older_one(tmp_path):
    (tmp_path / "model.html").write_text("old")
    assert "of 13 linear maps" in text_of(noble_fx.explain(tiny()), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_without_jinja2_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    templates.templates.cache_clear()
    with pytest.raises(ConfigError, match=r'jinja2, which is not installed: pip install "noble-fx\[report\]"'):
        noble_fx.explain(tiny()).to_html(tmp_path / "model.html")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_model_is_said_to_be_one(tmp_path):
    text = text_of(noble_fx.explain(tiny()), tmp_path)
    assert "Not transformed. By its default settings, transform would give a branch to" in text


def test_a_meta_model_has_no_curves(tmp_path):
    with torch.device("meta"):
        model = noble_fx.transform(WithOptional(), rank=4)
    text = text_of(noble_fx.explain(model), tmp_path)
    assert "No curves: the model is on the meta device and has no values." in text
    assert "There is no captured graph of this model here: noble_fx.explain(model, *inputs) makes one" in text


def test_a_saved_folder_has_a_page(tmp_path):
    noble_fx.save(transformed("modules"), tmp_path / "saved")
    text = text_of(noble_fx.explain(tmp_path / "saved"), tmp_path)
    assert "12 linear maps with a branch; the others are not listed there." in text
    assert "A file does not say how it will be run." in text


def test_many_layers_are_cut_off_with_a_word(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "ROWS", 3)
    monkeypatch.setattr(pages, "NAMES", 1)
    text = text_of(noble_fx.explain(transformed("modules")), tmp_path)
    assert "4 rows more are left out here" in text
    assert text.count("and 1 more</li>") == 3


def test_the_data_of_the_picture_is_json_without_tags(tmp_path):
    text = text_of(hostile(), tmp_path)
    (data,) = re.findall(r'<script type="application/json" id="drawing-data">(.*?)</script>', text, re.DOTALL)
    assert not set("<>&'") & set(data)
    assert any("</script>" in node["label"] for node in json.loads(data)["nodes"])


# --- in a browser ----------------------------------------------------------------------------------------------------

HOSTILE = [
    "</script><script>hacked=1</script>",
    '"><img src=x onerror=hacked=1>',
    "' onmouseover='hacked=1' tabindex='0",
    "{{ 7*7 }}",
    "--><b>x</b>",
]


def hostile() -> noble_fx.Explanation:
    """The account of a model whose layers, classes and reasons are markup."""
    block = type("<b>Block</b>", (nn.Module,), {"forward": lambda self, x: x})

    def made() -> nn.Module:
        one = block()
        for name in HOSTILE:
            one.add_module(name, nn.Linear(8, 8))
        return one

    holder = type("</title><script>hacked=1</script>", (nn.Module,), {"forward": lambda self, x: x})()
    holder.layers = nn.ModuleList([made(), made()])
    return noble_fx.explain(noble_fx.transform(holder, rank=2, seed=0))


def test_it_opens_without_an_error_and_asks_for_nothing(opened, file):
    with opened(file) as seen:
        assert seen.said == []
        assert seen.asked == [file.as_uri()]
        assert seen.page.locator("#drawing svg g").count() == 13
        assert seen.page.locator("#drawing svg g.fused").count() == 5


@pytest.mark.parametrize("explained", [hostile, explanation], ids=["markup", "syntax"])
def test_hostile_names_are_text(opened, explained, tmp_path):
    explained().to_html(tmp_path / "model.html")
    with opened(tmp_path / "model.html") as seen:
        seen.page.locator("#sites .fold, #sites .unfolded").first.hover()
        for box in seen.page.locator("#drawing svg g").all():
            box.hover()
        assert seen.page.evaluate("window.hacked") is None
        assert seen.said == []
        assert seen.page.locator("img, #sites b").count() == 0
        assert len(seen.asked) == 1


def names_shown(page) -> list[str]:
    return [text.strip() for text in page.locator("#sites tbody:visible tr:first-child th").all_inner_texts()]


def test_the_table_sorts_either_way(opened, file):
    with opened(file) as seen:
        first = names_shown(seen.page)
        parameters = seen.page.locator("#sites thead th", has_text="Parameters")
        parameters.locator("button").click()
        assert parameters.get_attribute("aria-sort") == "descending"
        assert names_shown(seen.page)[:2] == ["blocks.*.fc1", "blocks.*.fc2"]
        assert names_shown(seen.page)[-1] == "head"
        parameters.locator("button").press("Enter")
        assert parameters.get_attribute("aria-sort") == "ascending"
        assert names_shown(seen.page)[0] == "head"
        seen.page.locator("#sites thead button", has_text="Layer").click()
        assert names_shown(seen.page) == sorted(first)
        assert parameters.get_attribute("aria-sort") is None


def test_the_table_filters_and_unfolds(opened, file):
    with opened(file) as seen:
        seen.page.fill("#find", "blocks.1 ffn")
        assert names_shown(seen.page) == ["blocks.*.fc1", "blocks.*.fc2"]
        assert seen.page.inner_text("#shown") == "2 of 7 rows"
        seen.page.fill("#find", "")
        seen.page.select_option("#state", "without")
        assert names_shown(seen.page) == ["head"]
        seen.page.select_option("#state", "")
        fold = seen.page.locator(".fold", has_text="q_proj")
        fold.press("Enter")
        assert fold.get_attribute("aria-expanded") == "true"
        assert seen.page.locator(".names li:visible").all_inner_texts() == ["blocks.0.q_proj", "blocks.1.q_proj"]
        fold.click()
        assert seen.page.locator(".names li:visible").count() == 0


def test_each_pass_shows_what_it_changed(opened, file):
    with opened(file) as seen:
        page = seen.page
        passes = page.locator(".passes input")
        assert page.locator(".passes span").all_inner_texts() == [
            "all passes",
            "expose_linear",
            "insert_branch",
            "fuse_branch",
            "share_input",
        ]
        assert "linear_group(" in page.locator(".view:visible").inner_text()
        passes.first.focus()
        page.keyboard.press("ArrowRight")
        (shown,) = page.locator(".view:visible").all_inner_texts()
        assert "layer(x)  ->  linear(x, layer.weight, layer.bias)" in shown
        assert "F.linear(blocks_0_norm" in shown
        assert "linear_group" not in shown
        assert "blocks.1: equal to blocks.0" in shown
        assert set(page.locator(".steps tbody tr:visible td:first-child").all_inner_texts()) == {"expose_linear"}


def test_a_step_leads_to_its_line(opened, file):
    with opened(file) as seen:
        step = seen.page.locator(".steps tbody tr", has_text="no bias here, one there")
        step.locator("button").click()
        assert seen.page.locator(".passes input:checked").get_attribute("data-pass") == "share_input"
        found = seen.page.locator("td.found:visible").all_inner_texts()
        assert found
        assert all("k_proj" in line for line in found)


def test_a_box_tells_its_facts_to_the_pointer_and_to_the_keyboard(opened, file):
    with opened(file) as seen:
        seen.page.locator("#drawing g.fused", has_text="fc1").hover()
        assert "16 → 32, rank 4, cosnet" in seen.page.inner_text("#details")
        seen.page.locator("#drawing g", has_text="dropout").focus()
        assert "blocks.0.dropout" in seen.page.inner_text("#details")
        seen.page.keyboard.press("Tab")
        assert "blocks.0.dropout" not in seen.page.inner_text("#details")


def test_it_is_no_wider_than_the_screen(opened, file):
    with opened(file) as seen:
        for width in (360, 390, 700, 1248):
            seen.page.set_viewport_size({"width": width, "height": 844})
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_in_print(opened, file):
    with opened(file, color_scheme="dark") as seen:
        ground = "getComputedStyle(document.body).backgroundColor"
        assert seen.page.evaluate(ground) == "rgb(21, 25, 29)"
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate(ground) == "rgb(255, 255, 255)"
        assert not seen.page.locator("nav").is_visible()
        assert not seen.page.locator(".tools").is_visible()

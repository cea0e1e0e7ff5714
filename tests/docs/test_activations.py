"""The page of activations: every name with its formula, its number of parameters and its picture."""

import re
from xml.etree import ElementTree

import pytest
import torch

from docs.tools import plots
from noble_fx.branches.activations import activation_names, build_activation
from noble_fx.config import PRESETS
from tests.pages import ROOT

PAGE = (ROOT / "docs" / "activations.md").read_text(encoding="utf-8")
ROWS = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)}


def test_every_name_has_a_row_in_order():
    assert tuple(ROWS) == activation_names()


@pytest.mark.parametrize("name", activation_names())
def test_the_parameters_are_counted_right(name):
    _, formula, _ = ROWS[name]
    act = build_activation(name, 16, PRESETS["paper"])
    terms = re.sub(r"(\d*)r(²?)", lambda m: f"{m[1] or 1} * 16{' ** 2' if m[2] else ''}", formula)
    assert eval(terms) == sum(parameter.numel() for parameter in act.parameters())


def test_every_picture_is_there_and_no_other():
    assert {file.stem for file in plots.FOLDER.iterdir()} == set(activation_names())
    assert all(f"images/activations/{name}.svg" in ROWS[name][2] for name in activation_names())


@pytest.mark.parametrize("name", activation_names())
def test_a_picture_shows_what_the_module_computes(name):
    """The committed points are those of today's module, to a tenth of a point and a rounding."""
    svg = ElementTree.parse(plots.FOLDER / f"{name}.svg").getroot()
    lines = [line.get("points", "") for line in svg.iter("{http://www.w3.org/2000/svg}polyline")]
    drawn = torch.tensor([[[float(n) for n in point.split(",")] for point in line.split()] for line in lines])
    torch.testing.assert_close(drawn, torch.tensor(plots.places(plots.curves(name))), atol=0.11, rtol=0)


def test_channels_that_differ_are_drawn_apart():
    assert len(plots.curves("gelu")) == 1
    assert len(plots.curves("cosnet")) == 3

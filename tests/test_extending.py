"""Every recipe of docs/extending.md runs as it stands: its source file, then each test of its test file."""

import inspect
import linecache
import re
from pathlib import Path

import pytest
import torch

import noble_fx
from noble_fx.branches import activations, kinds
from noble_fx.codegen.sigma.operators import pointwise
from noble_fx.layers import registry

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = {
    title: re.findall(r"^```python\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}


def recipe_names(title: str) -> dict[str, object]:
    """What the two blocks of a recipe define."""
    names: dict[str, object] = {"__name__": "recipe", "pytest": pytest, "noble_fx": noble_fx}
    for at, block in enumerate(RECIPES[title]):
        file = f"docs/extending.md, {title}, block {at + 1}"
        linecache.cache[file] = len(block), None, block.splitlines(keepends=True), file  # for a traceback to show
        exec(compile(block, file, "exec"), names)
    return names


def recipe_tests(title: str) -> list[str]:
    return re.findall(r"^def (test_\w+)", "".join(RECIPES[title]), re.MULTILINE)


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch, tmp_path):
    """A recipe adds itself to the project's tables, and must not stay there."""
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path / "cache"))
    for owner, table in (
        (activations, "_USER"),
        (kinds, "_KINDS"),
        (registry, "_ROWS"),
    ):
        monkeypatch.setattr(owner, table, dict(getattr(owner, table)))
    operators = dict(pointwise.TABLE)
    yield
    for added in pointwise.TABLE.keys() - operators.keys():
        del pointwise.TABLE[added]


def test_there_are_six_recipes_of_a_file_and_its_test():
    assert len(RECIPES) == 6
    for title, blocks in RECIPES.items():
        assert len(blocks) == 2, title
        assert recipe_tests(title), title


class Log10(torch.nn.Module):
    def __init__(self, rank):
        super().__init__()

    def forward(self, h):
        return torch.log10(1 + h * h)


def test_an_operator_outside_the_table_is_named_as_the_page_shows():
    model = noble_fx.transform(torch.nn.Sequential(torch.nn.Linear(8, 6)), rank=2, act=Log10, select="all")
    (shown,) = re.findall(r"^    (PyTorch operators at .*)$", TEXT, re.MULTILINE)
    assert shown in str(noble_fx.explain(model)).splitlines()


@pytest.mark.parametrize(("title", "name"), [(title, name) for title in RECIPES for name in recipe_tests(title)])
def test_recipe(title, name, tmp_path):
    test = recipe_names(title)[name]
    test(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(test).parameters else {}))

"""Every numbered example runs, and is short enough to be read."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from noble_fx.branches import activations

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))


def test_they_are_numbered_without_a_gap():
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_runs(path, tmp_path, monkeypatch, capsys):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert re.search(rf"python examples/{path.name}$", text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(activations, "_USER", {})
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert not list(tmp_path.iterdir())

"""The README: short, every block runs as a reader would run it, every link leads somewhere."""

import re
from pathlib import Path

from noble_fx.branches import activations
from tests.pages import headings, links, run_page

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_every_block_runs_and_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(activations, "_USER", {})
    run_page(README, lambda: capsys.readouterr().out)


def test_it_is_read_in_a_minute():
    assert len(TEXT.splitlines()) <= 130


def test_links_lead_somewhere():
    for target, heading in links(TEXT):
        if not target.startswith("https://"):
            assert not target or (ROOT / target).exists(), target
            assert not heading or heading in headings(ROOT / target if target else README), heading
    for target in re.findall(r"`((?:docs|examples|benchmarks|tests)/[\w./]+)`", TEXT):
        assert (ROOT / target).exists(), target

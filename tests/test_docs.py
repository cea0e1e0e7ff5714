"""The pages in `docs/`: what they point to is there."""

import re
from pathlib import Path

import pytest
import torch

from tests.test_readme import headings

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    for path in re.findall(r"`((?:noble_fx|tests|examples|benchmarks|docs)/[\w./]+)`", prose(page)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", prose(page)):
        if not target.startswith("https://"):
            assert not target or (page.parent / target).exists(), target
            assert not heading or heading in headings(page.parent / target if target else page), heading


@pytest.mark.parametrize(
    "page", ["glossary.md", "extending.md", "architecture.md", "training.md", "distributed.md", "cpu.md"]
)
def test_the_readme_leads_to_every_page(page):
    assert f"docs/{page}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_term_is_explained_once():
    terms = re.findall(r"^\*\*(.+?)\*\* – ", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"site", "branch", "capture", "action", "pass"} <= set(terms)
    assert len(set(terms)) == len(terms)


def run_blocks(page: str) -> str:
    """The page's Python as one program; returns the page's text."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for body in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(body, page, "exec"), names)
    return text


def test_what_is_written_of_training_runs_in_order(capsys):
    text = run_blocks("training.md")
    (table,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert table.strip() in capsys.readouterr().out


def test_what_is_written_of_many_processes_runs_in_order():
    run_blocks("distributed.md")
    assert not torch.distributed.is_initialized()

"""The pages in `docs/`: what they point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:noble_fx|tests|examples|benchmarks|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["glossary.md", "extending.md", "architecture.md"])
def test_the_readme_leads_to_every_page(page):
    assert f"docs/{page}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_term_is_explained_once():
    terms = re.findall(r"^\*\*(.+?)\*\* – ", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"site", "branch", "capture", "action", "pass"} <= set(terms)
    assert len(set(terms)) == len(terms)

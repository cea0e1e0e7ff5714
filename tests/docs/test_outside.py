"""Links out of `docs/`: on the site each leads to a page that the build adds."""

import re

import pytest

pytest.importorskip("mkdocs")

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import get_files
from mkdocs.structure.nav import get_navigation

from docs.tools import outside
from tests.pages import ROOT


@pytest.fixture
def config():
    settings = MkDocsConfig(str(ROOT / "mkdocs.yml"))
    settings.load_dict({"site_name": "x", "docs_dir": str(ROOT / "docs"), "nav": [{"More": ["source/CHANGELOG.md"]}]})
    settings.validate()
    settings.plugins._current_plugin = "a hook"  # a build sets it for whoever adds files
    return settings


def test_a_link_is_rewritten_for_where_its_page_is():
    page = ROOT / "docs" / "reference" / "look.md"
    text = "[a]({}#L1), [b](../kernels.md), [c](https://x.org), `[d](../../README.md)`, [e](#look)"
    rewritten = outside.rewritten(text.format("../../examples/pretrain/train_gpt.py"), page)
    assert rewritten == text.format("../source/examples/pretrain/train_gpt.py.md")


def test_a_link_to_the_same_file_from_the_root_leads_into_the_site():
    assert outside.rewritten("[a](docs/cpu.md#x)", ROOT / "README.md") == "[a](../cpu.md#x)"


def test_what_leads_nowhere_stays_for_the_build_to_refuse():
    assert outside.rewritten("[a](../gone.py)", ROOT / "docs" / "index.md") == "[a](../gone.py)"


@pytest.mark.parametrize("name", ["README.md", "examples/pretrain/train_gpt.py", "docs/cpu.md", "LICENSE"])
def test_a_page_is_found_again(name):
    assert outside.file_of(outside.page_of(ROOT / name)) == ROOT / name


def test_code_is_one_block_of_its_language():
    content = outside.content_of(ROOT / "examples" / "pretrain" / "train_gpt.py")
    assert content.startswith("# examples/pretrain/train_gpt.py\n\n`````python\n")
    assert (ROOT / "examples" / "pretrain" / "train_gpt.py").read_text("utf-8") in content


def test_pages_are_added_for_links_and_for_the_navigation(config):
    files = outside.on_files(get_files(config), config)
    wanted = {"source/CONTRIBUTING.md", "source/CHANGELOG.md", "source/examples/pretrain/train_gpt.py.md"}
    assert wanted <= set(files.src_uris)
    assert not [uri for uri in files.src_uris if uri.startswith("source/docs/")]
    (page,) = [page for page in get_navigation(files, config).pages if page.file.src_uri == "source/CHANGELOG.md"]
    assert page.file.content_string.startswith("# Changelog")


def test_every_page_is_in_the_navigation():
    """The build would say so too, in a minute more."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert named - {"source/CONTRIBUTING.md", "source/CHANGELOG.md"} == pages

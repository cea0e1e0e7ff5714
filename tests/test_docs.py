"""The pages in `docs/`: their blocks run and print what is shown, and what they point to is there."""

import importlib
import re

import pytest
import torch

import noble_fx
from noble_fx.branches import activations, kinds
from tests.pages import ROOT, blocks, headings, links, run_page

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# The blocks of extending.md are files and their tests: tests/test_extending.py runs them.
RUNNABLE = [
    name
    for name, page in zip(NAMES, PAGES, strict=True)
    if name != "docs/extending.md" and {"python", "bash"} & {b.language for b in blocks(page.read_text("utf-8"))}
]


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_blocks_of_a_page_run_in_order(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(activations, "_USER", {})
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    run_page(ROOT / name, lambda: capsys.readouterr().out)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_exist(name):
    prose = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path in re.findall(r"`((?:noble_fx|tests|examples|benchmarks|docs)/[\w./]+)`", prose):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target, heading in links(page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert not target or (page.parent / target).exists(), target
            assert not heading or heading in headings(page.parent / target if target else page), heading


@pytest.mark.parametrize(
    "page", ["glossary.md", "extending.md", "architecture.md", "training.md", "distributed.md", "cpu.md", "inspect.md"]
)
def test_the_readme_leads_to_every_page(page):
    assert f"docs/{page}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_term_is_explained_once():
    terms = re.findall(r"^\*\*(.+?)\*\* – ", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"site", "branch", "capture", "action", "pass"} <= set(terms)
    assert len(set(terms)) == len(terms)


def test_every_public_name_is_in_the_reference():
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    paths = [path for text in pages for path in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)]
    told = {
        name: getattr(importlib.import_module(module), name) for module, _, name in (p.rpartition(".") for p in paths)
    }
    assert len(told) == len(paths)
    for name in noble_fx.__all__:
        assert name == "runtime" or told[name] is getattr(noble_fx, name), name
    assert told["OnnxModel"] is noble_fx.runtime.OnnxModel
    assert told["NobleColwiseParallel"] is noble_fx.NobleColwiseParallel
    assert told["NobleRowwiseParallel"] is noble_fx.NobleRowwiseParallel

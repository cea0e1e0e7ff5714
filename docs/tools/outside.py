"""mkdocs hook: what pages link to outside of `docs/` becomes a page of the site, under `source/`.

A link such as `../examples/train_gpt.py` works where the repository is browsed. The site has no such file, so each one
that a page links to is added: a Markdown file as it is, any other as a block of code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".yml": "yaml"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside of `docs/` that a page of the site links to, or the navigation names."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    waiting += [ROOT / uri.removeprefix("source/").removesuffix(".md") for uri in _in_nav(config.nav)]
    waiting = [path if path.exists() else path.with_name(path.name + ".md") for path in waiting]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, page_of(path), content=content_of(path)))
        if path.suffix == ".md":
            waiting += [target for _, target in links(path.read_text(encoding="utf-8"), path)]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead from this page to files, as links to their pages."""
    path = file_of(page.file.src_uri)
    return rewritten(markdown, path) if path.suffix == ".md" else markdown


def page_of(path: Path) -> str:
    """Where the site has a file of the repository, from the site's root."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    inside = path.relative_to(ROOT).as_posix()
    return f"source/{inside}" if inside.endswith(".md") else f"source/{inside}.md"


def file_of(uri: str) -> Path:
    """The inverse of `page_of`."""
    if not uri.startswith("source/"):
        return DOCS / uri
    path = ROOT / uri.removeprefix("source/")
    return path if path.is_file() else path.with_suffix("")


def content_of(path: Path) -> str:
    """A file as a page: Markdown as it is, else its text in a block."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    fence = "`" * 5
    name = path.relative_to(ROOT).as_posix()
    return f"# {name}\n\n{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text}\n{fence}\n"


def links(markdown: str, path: Path) -> Iterator[tuple[re.Match[str], Path]]:
    """Each link to a file of the repository in the page at `path`, with that file."""
    code = [match.span() for match in CODE.finditer(markdown)]
    for match in LINK.finditer(markdown):
        quoted = any(start <= match.start() < end for start, end in code)
        target = Path(os.path.normpath(path.parent / match[0]))
        if not quoted and "://" not in match[0] and target.is_relative_to(ROOT) and target.is_file():
            yield match, target


def rewritten(markdown: str, path: Path) -> str:
    """The page's text with each link to a file as it is on the site."""
    here, out, at = os.path.dirname(page_of(path)), [], 0
    for match, target in links(markdown, path):
        out += [markdown[at : match.start()], os.path.relpath(page_of(target), here or ".")]
        at = match.end()
    return "".join([*out, markdown[at:]])


def _in_nav(entry: Any) -> Iterator[str]:
    """The pages under `source/` that the navigation names."""
    if isinstance(entry, str):
        if entry.startswith("source/"):
            yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry or ():
            yield from _in_nav(part)

"""An account as one HTML file that a browser opens without asking anybody for anything.

The texts of `assets/` are put together by jinja2. What the page's script reads is JSON in which no tag can stand, and
the page's own policy lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from noble_fx.errors import ConfigError, printable
from noble_fx.explaining.account import LEFT_OUT, Account
from noble_fx.explaining.terminal import Row, rows
from noble_fx.files import as_path, staged
from noble_fx.report import kernels, overview, sigma
from noble_fx.report.comparison import LINES
from noble_fx.report.picture import Picture, picture
from noble_fx.report.program import program_page
from noble_fx.report.templates import asset, templates

SUFFIXES = (".html", ".htm")
ROWS = 2_000  # of the table of layers
NAMES = 400  # of equal layers, that are named
_DAGRE, _LICENSE = "vendor/dagre-3.1.3.min.js", "vendor/dagre-LICENSE.txt"


def write_page(account: Account, path: str | os.PathLike[str]) -> None:
    """Write the page to `path`, or leave what is there; raises `ConfigError` with the reason."""
    target = as_path(path, ConfigError)
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{printable(target)} does not end in .html, which to_html writes; name it model.html")
    text = page(account)
    with staged(target, ConfigError, overwrite=True) as work:
        (work / target.name).write_text(text, encoding="utf-8", errors="backslashreplace")


def page(account: Account) -> str:
    """The page's text; raises `ConfigError` where the packages that make it are missing."""
    template = templates().get_template("page.html.jinja")
    scripts = [f"/*\n{asset(_LICENSE)}*/\n{asset(_DAGRE)}", asset("report.js")]
    drawn = picture(account)
    listed = rows(account.entries)
    return template.render(
        account=account,
        overview=overview,
        rows=listed[:ROWS],
        rows_left_out=len(listed) - ROWS,
        states=_states,
        names=NAMES,
        picture=drawn,
        drawing=None if drawn is None else _drawing(drawn),
        programs=[program_page(*both) for both in zip(account.programs, account.graphs, strict=True)],
        lines=LINES,
        sigmas=sigma.sigmas(account),
        sigma=sigma,
        kernels=kernels.layers(account),
        style=asset("report.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        version=_version(),
    )


def _drawing(drawn: Picture) -> dict[str, Any]:
    direction = "TB" if drawn.flows else "LR"
    return {"direction": direction, "nodes": [vars(node) for node in drawn.nodes], "edges": drawn.edges}


def _states(row: Row) -> str:
    """What the table can be filtered by."""
    entry = row.entry
    if entry.state == LEFT_OUT:
        return "without"
    return " ".join(["with", entry.way, *([] if entry.kernels else ["no-kernels"])])


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _version() -> str:
    try:
        return version("noble-fx")
    except PackageNotFoundError:
        return ""

"""What is printed as a table, by rich: imported when something is printed, not before."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from noble_fx.errors import printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

NOTHING = "–"


def as_text(renderable: Any, width: int = 110) -> str:
    """What rich would print of it, without colours, as `print` shows it."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width, color_system=None, legacy_windows=False).print(renderable)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def table(*columns: str, **settings: Any) -> Table:
    """A table without lines around it."""
    from rich.table import Table

    return Table(*columns, **{"box": None, "pad_edge": False, **settings})


def group(*parts: Any) -> Group:
    """Several things, one below the other."""
    from rich.console import Group

    return Group(*parts)


def plain(text: object) -> Text:
    """What a model or a file says, for rich: shown as it stands, never as markup, nor as a terminal's own codes."""
    from rich.text import Text

    return Text(printable(text))


def number(value: float | None) -> str:
    """Three digits of it, "–" where there is none."""
    return NOTHING if value is None else f"{value:.3g}"

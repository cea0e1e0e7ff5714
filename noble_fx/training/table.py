"""Tables as text, and numbers in them."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

NOTHING = "–"


def as_text(renderable: Any) -> str:
    """What rich would print of it, without colours, as `print` shows it."""
    text = io.StringIO()
    Console(file=text, width=110, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def number(value: float | None) -> str:
    """Three digits of it, "–" where there is none."""
    return NOTHING if value is None else f"{value:.3g}"

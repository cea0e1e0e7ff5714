"""The messages on the page of troubleshooting are those of the code."""

import ast
import re
from functools import cache

import pytest

from tests.pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^#### `(.+)`$", PAGE, re.MULTILINE)
REASONS = [text for row in re.findall(r"^\| (`.+`) \|", PAGE, re.MULTILINE) for text in re.findall(r"`([^`]+)`", row)]


@cache
def texts() -> tuple[str, ...]:
    """Every text in the package, with … for what is filled in."""
    found = []
    for file in (ROOT / "noble_fx").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))  # type: ignore[misc]
    return tuple(found)


def says(text: str, message: str) -> bool:
    """Whether a text of the code, filled in, begins as the message does."""
    parts = [re.escape(part) for part in message.split("…")]
    return re.match(".*?".join(parts), text, re.DOTALL) is not None


@pytest.mark.parametrize("message", [*MESSAGES, *REASONS])
def test_the_code_says_so(message):
    assert len(message.replace("…", "").strip()) > 8, "too little to be found by"
    assert any(says(text, message) for text in texts())


def test_messages_are_told_once():
    assert len(set(MESSAGES)) == len(MESSAGES) > 40

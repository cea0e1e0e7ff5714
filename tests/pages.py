"""Reading and running the pages that a user reads: their blocks in order, as the user would run them."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from noble_fx import cli

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of code; `shown` is the text that stands right behind it, which it is said to print."""

    language: str
    body: str
    shown: str = ""


def blocks(text: str) -> list[Block]:
    """The blocks of a page; a `text` block with nothing in between belongs to the one before it."""
    found: list[Block] = []
    end = -1
    for match in BLOCK.finditer(text):
        if match[1] == "text" and found and not text[end : match.start()].strip():
            found[-1] = Block(found[-1].language, found[-1].body, match[2])
        else:
            found.append(Block(match[1], match[2]))
        end = match.end()
    return found


def commands(body: str) -> list[str]:
    """The commands of a `bash` block, without comments."""
    return [line.split("#")[0].strip() for line in body.splitlines() if line.split("#")[0].strip()]


def run_page(page: Path, read_output: Callable[[], str]) -> None:
    """Run the blocks of Python as one program, the commands between them, and compare what is printed."""
    names: dict[str, object] = {}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            exec(compile(block.body, page.name, "exec"), names)
        elif block.language == "bash":
            for command in commands(block.body):
                run_command(command)
        printed = read_output()
        assert without_margins(block.shown) in without_margins(printed), printed


def run_command(command: str) -> None:
    """`noble-fx …` is run; of what installs or takes minutes, that it is there."""
    program, *arguments = shlex.split(command)
    if program == "noble-fx":
        assert cli.main(arguments) == 0, command
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
    elif program == "python" and arguments[0] == "-m":
        path = ROOT / arguments[1].replace(".", "/")
        assert arguments[1] == "pytest" or path.with_suffix(".py").is_file() or path.is_dir(), command
    elif program == "pip":
        (extras,) = re.findall(r"\[(.*)\]", arguments[-1])
        known = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = \[", known, re.MULTILINE) for extra in extras.split(",")), command
    else:
        assert program in ("source", ".venv/bin/ruff", ".venv/bin/mypy"), command


def without_margins(text: str) -> str:
    """Lines without the blanks that a table ends them with."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def headings(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def links(text: str) -> list[tuple[str, str]]:
    """Target and heading of every link in a page's prose."""
    prose = re.sub(r"^```.*?^```|`[^`\n]+`(?!\])", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", prose)

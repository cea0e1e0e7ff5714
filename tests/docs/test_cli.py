"""The page of the command line names every command and every option."""

import argparse
import re

from noble_fx.cli.commands import make_parser
from tests.pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_on_the_page():
    (commands,) = [a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(commands.choices) == set(re.findall(r"^\| `(\w+)(?: [A-Z \[\]]+)?` \|", PAGE, re.MULTILINE))
    options = {o for p in commands.choices.values() for a in p._actions for o in a.option_strings} - {"-h", "--help"}
    assert options == set(re.findall(r"`(--[\w-]+)`", PAGE))

"""`noble-fx`: the library's verbs from the command line, a file each."""

from noble_fx.cli.commands import main

__all__ = ["main"]

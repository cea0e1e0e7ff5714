"""`noble-fx completion SHELL`: a script that completes commands and options; `eval` it in the shell's own file."""

from __future__ import annotations

import argparse

from noble_fx.errors import ConfigError

TEXT = 'print what completes this command in a shell: eval "$(noble-fx completion bash)"'
SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    command.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    try:
        import shtab
    except ImportError:
        raise ConfigError('completion needs shtab: pip install "noble-fx[completion]"') from None
    print(shtab.complete(args.parser, args.shell))

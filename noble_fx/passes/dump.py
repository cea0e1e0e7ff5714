"""`NOBLE_FX_DUMP=folder`: each graph that passes run over is written there, as it was before and after every pass.

    folder/001_train_Tiny/00_captured.py
                          01_expose_linear.py       what the pass did, line by line, and the graph then
                          02_insert_branch.py

A subfolder is one run of a pipeline over one graph, and appears whole. It is for reading: nothing is read back, and
nothing that goes wrong with it reaches the passes.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from torch import fx

from noble_fx.errors import printable
from noble_fx.passes.history import Step

VARIABLE = "NOBLE_FX_DUMP"
Note = Callable[[str, str, Sequence[Step]], None]  # a pass's name, its rewrite in one line, and its steps

_log = logging.getLogger(__name__)
_numbers = itertools.count(1)


@contextmanager
def dumped(graph_module: fx.GraphModule, pipeline: str) -> Iterator[Note]:
    """Gives what is to be told of every pass; all of it is written at the end, also at that of an error."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        yield lambda name, rewrite, steps: None
        return
    kind = type(graph_module).__name__
    files = {"00_captured.py": _text(graph_module, [f"{kind}, before the passes {pipeline!r}"])}

    def note(name: str, rewrite: str, steps: Sequence[Step]) -> None:
        if steps:
            files[f"{len(files):02}_{_plain(name)}.py"] = _text(
                graph_module, [f"{name}: {rewrite}", *map(_line, steps)]
            )

    try:
        yield note
    finally:
        _write(Path(folder), _plain(f"{pipeline}_{kind}"), files)


def _plain(name: str) -> str:
    """A name that no file system objects to."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)[:60]


def _text(graph_module: fx.GraphModule, comments: list[str]) -> str:
    """The graph as Python, with what is said of it in front."""
    try:
        code = graph_module.graph.python_code("self", verbose=True).src.strip("\n")
    except Exception as problem:  # whatever torch makes of a graph in the middle of being rewritten
        code = f"# {printable(f'torch cannot write this graph as Python: {problem}')}"
    said = [f"# {printable(comment)}" for comment in comments]
    return "\n".join([*said, "", code, ""])


def _line(step: Step) -> str:
    return (
        f"  {step.node}: stays, {step.skipped}" if step.skipped else f"  {step.node}: {step.before}  ->  {step.after}"
    )


def _write(folder: Path, name: str, files: dict[str, str]) -> None:
    try:
        folder = folder.expanduser()
        work = folder / f".{name}.{uuid.uuid4().hex}"
        work.mkdir(parents=True)
        try:
            for file, text in files.items():
                (work / file).write_text(text, encoding="utf-8", errors="backslashreplace")
            _place(work, folder, name)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except (OSError, ValueError, RuntimeError) as problem:  # a NUL in the name; a home that nobody has
        _warn(str(folder), getattr(problem, "strerror", None) or str(problem))


def _place(work: Path, folder: Path, name: str) -> None:
    """Rename `work` to the first number that is free; another process may take one at the same time."""
    for number in _numbers:
        target = folder / f"{number:03}_{name}"
        try:
            work.rename(target)
            return
        except OSError:
            if not os.path.lexists(target):
                raise


@cache
def _warn(folder: str, reason: str) -> None:
    text = "%s=%s cannot be written (%s), so no passes are shown there; set it to a folder that can be, or unset it"
    _log.warning(text, VARIABLE, printable(folder), printable(reason))

"""Files that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noble_fx.errors import NobleError


@contextmanager
def staged(target: Path, error: type[NobleError], overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target`; what it holds at the end moves to `target`'s place when all went well.

    Raises `error` when `target` exists (unless `overwrite`) or its folder cannot be written.
    """
    target = Path(os.path.abspath(target))
    if target.exists() and not overwrite:
        raise error(f"{target} exists; remove it, choose another path, or pass overwrite=True")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as problem:
        raise error(f"cannot write beside {target}: {problem.strerror or problem}; choose another path") from None
    try:
        try:
            yield work
        except OSError as problem:
            raise error(f"writing {target} failed: {problem.strerror or problem}; nothing was left there") from problem
        _put(work / target.name, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(made: Path, target: Path) -> None:
    """Rename `made` to `target`; an old folder is set aside first: a rename cannot replace one that is full."""
    old = made.with_name(made.name + ".old")
    if target.is_dir():
        target.rename(old)
    for sidecar in made.parent.iterdir():  # external data of an ONNX file goes first: the file is nothing without it
        if sidecar not in (made, old):
            sidecar.replace(target.with_name(sidecar.name))
    made.replace(target)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that several processes may write at once: each reader sees all of one version. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(21, "a folder is in the file's place", str(path))
    handle, staged_name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(staged_name, path)
    except BaseException:
        Path(staged_name).unlink(missing_ok=True)
        raise

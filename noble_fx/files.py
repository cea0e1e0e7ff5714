"""Files that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noble_fx.errors import NobleError


def existing_file(path: str | os.PathLike[str], error: type[NobleError], remedy: str) -> Path:
    """`path` as that of a file that is there; raises `error` for nothing, for a folder and for what is no path."""
    file = as_path(path, error)
    try:
        if file.is_file():
            return file
        wrong = "is a folder" if file.is_dir() else "is no file" if file.exists() else "does not exist"
    except (OSError, ValueError) as problem:  # too long, forbidden, or with a NUL in it
        wrong = f"cannot be looked at ({_reason(problem)})"
    raise error(f"{_shown(file)} {wrong}; {remedy}")


def as_path(path: str | os.PathLike[str], error: type[NobleError]) -> Path:
    """`path` as a `Path`; raises `error` for an object that is none, by name."""
    try:
        return Path(path)
    except TypeError:
        raise error(f"{path!r} is no path; pass a str or a pathlib.Path") from None


@contextmanager
def staged(target: Path, error: type[NobleError], overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target`; what it holds at the end moves to `target`'s place when all went well.

    Raises `error` when `target` exists (unless `overwrite`), its folder cannot be written, or a file would replace a
    folder or the other way round.
    """
    target = Path(os.path.abspath(target))
    try:
        if target.exists() and not overwrite:
            raise error(f"{target} exists; remove it, choose another path, or pass overwrite=True")
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except NobleError:  # a ValueError as well
        raise
    except (OSError, ValueError) as problem:
        raise error(f"cannot write beside {_shown(target)}: {_reason(problem)}; choose another path") from None
    try:
        yield work
        new = work / target.name
        if target.exists() and target.is_dir() != new.is_dir():
            old_kind, new_kind = ("folder", "file") if target.is_dir() else ("file", "folder")
            raise error(f"{target} is a {old_kind}, and a {new_kind} does not replace it; choose another path")
        _put(work, target)
    except OSError as problem:
        raise error(f"writing {target} failed: {_reason(problem)}; nothing was left there") from problem
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, target: Path) -> None:
    """Move all that is in `work` to its place beside `target`, or, whatever is raised, leave everything as it was."""
    sidecars = [part for part in work.iterdir() if part.name != target.name]
    if not sidecars and not target.is_dir():
        (work / target.name).replace(target)
        return
    aside = work / ".aside"
    aside.mkdir()
    moves = [(part, target.with_name(part.name), aside / part.name) for part in [*sidecars, work / target.name]]
    try:
        for new, place, old in moves:  # external data of an ONNX file goes first: the file is nothing without it
            if os.path.lexists(place):
                place.replace(old)
            new.replace(place)
    except BaseException:
        for new, place, old in moves:  # read off the disk: an interrupt comes between any two steps
            if not os.path.lexists(new):
                os.rename(place, new)
            if os.path.lexists(old):
                os.rename(old, place)
        raise


def _reason(problem: OSError | ValueError) -> str:
    return getattr(problem, "strerror", None) or str(problem)


def _shown(path: Path) -> str:
    """The path as text that any stream can print: a NUL or a lone surrogate is escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


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

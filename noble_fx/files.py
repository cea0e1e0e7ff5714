"""Files that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from noble_fx.errors import NobleError, printable, shown

_DIGITS = 40  # of an integer in our files: seeds have fewer, and Python's own limit of 4,300 fills a screen


def existing_file(path: str | os.PathLike[str], error: type[NobleError], remedy: str) -> Path:
    """`path` as that of a file that is there; raises `error` for nothing, for a folder and for what is no path."""
    file = as_path(path, error)
    try:
        if file.is_file():
            return file
        wrong = "is a folder" if file.is_dir() else "is no file" if file.exists() else "does not exist"
    except (OSError, ValueError) as problem:  # too long, forbidden, or with a NUL in it
        wrong = f"cannot be looked at ({_reason(problem)})"
    raise error(f"{printable(file)} {wrong}; {remedy}")


def as_path(path: str | os.PathLike[str], error: type[NobleError]) -> Path:
    """`path` as a `Path`; raises `error` for an object that is none, by name."""
    try:
        return Path(path)
    except TypeError:
        raise error(f"{shown(path)} is no path; pass a str or a pathlib.Path") from None


def read_json(text: str | bytes) -> Any:
    """What JSON says, as it was written by us; raises `ValueError`, in one line, for whatever could mean two things.

    Those are: a name twice in an object, NaN, a number without bound, half a character; and nesting without end.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite, parse_int=_short
        )
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate could be read, but never printed
    except UnicodeEncodeError:
        raise ValueError("a text in it is no Unicode") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{printable(twice):.60} stands in it twice")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits:.60} is too large a number")
    return number


def _short(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"{digits:.20}… is a number of {len(digits)} digits")
    return int(digits)


@contextmanager
def staged(
    target: Path, error: type[NobleError], overwrite: bool = False, stranger: Callable[[Path], str] = lambda folder: ""
) -> Iterator[Path]:
    """Yields an empty folder beside `target`; what it holds at the end moves to `target`'s place when all went well.

    Raises `error` when `target` exists (unless `overwrite`), its folder cannot be written, or a file would replace a
    folder or the other way round. `stranger(folder)` names what is in an old folder and is not to be deleted, or "".
    """
    target = Path(os.path.abspath(target))
    try:
        _check_replaceable(target, error, overwrite, stranger)
        new_parents = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except NobleError:  # a ValueError as well
        raise
    except (OSError, ValueError) as problem:
        raise error(f"cannot write beside {printable(target)}: {_reason(problem)}; choose another path") from None
    try:
        yield work
        new = work / target.name
        _check_replaceable(target, error, overwrite, stranger)  # again: minutes may have passed
        if target.exists() and target.is_dir() != new.is_dir():
            old_kind, new_kind = ("folder", "file") if target.is_dir() else ("file", "folder")
            raise error(f"{target} is a {old_kind}, and a {new_kind} does not replace it; choose another path")
        _put(work, target)
    except OSError as problem:
        raise error(f"writing {target} failed: {_reason(problem)}; nothing was left there") from problem
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not target.exists():
            for folder in new_parents:
                with suppress(OSError):  # somebody else's by now
                    folder.rmdir()


def _check_replaceable(target: Path, error: type[NobleError], overwrite: bool, stranger: Callable[[Path], str]) -> None:
    if target.exists() and not overwrite:
        raise error(f"{target} exists; remove it, choose another path, or pass overwrite=True")
    if target.is_dir() and (found := stranger(target)):
        raise error(f"{target} is not replaced, for {found} would be lost; remove it, or choose another path")


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
                place.rename(old)
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

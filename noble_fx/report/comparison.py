"""Two texts side by side: rows of what was there before and is there now, long runs of equal lines out of sight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import NamedTuple

from noble_fx.report.folding import Shown

LINES = 1_500  # of a text, that are shown
_AROUND = 3  # equal lines that stay in sight around those that changed
_NOTHING = Shown("")


class Row(NamedTuple):
    """A line before and after; one of them is empty where nothing stands against the other."""

    before: Shown
    after: Shown
    changed: bool


class Run(NamedTuple):
    """Rows one below the other; `hidden` for equal ones far from any that changed."""

    rows: tuple[Row, ...]
    hidden: bool


def compared(before: Sequence[Shown], after: Sequence[Shown]) -> list[Run]:
    """The rows of two texts in runs, in their order."""
    rows = list(_rows(_cut(before), _cut(after)))
    near = [False] * len(rows)
    for at, row in enumerate(rows):
        if row.changed:
            near[max(at - _AROUND, 0) : at + _AROUND + 1] = [True] * len(rows[max(at - _AROUND, 0) : at + _AROUND + 1])
    return list(_runs(rows, near)) if any(near) else [Run(tuple(rows), False)]


def _cut(text: Sequence[Shown]) -> list[Shown]:
    left_out = len(text) - LINES
    return [*text[:LINES], Shown(f"# … and {left_out:,} lines that are left out here")] if left_out > 0 else list(text)


def _rows(before: list[Shown], after: list[Shown]) -> Iterator[Row]:
    # A node keeps its name as long as no pass rewrites it, whatever becomes of what it reads.
    old_names, new_names = ([line.node or line.text for line in text] for text in (before, after))
    for _, i, j, k, m in SequenceMatcher(None, old_names, new_names, autojunk=False).get_opcodes():
        for old, new in zip_longest(before[i:j], after[k:m], fillvalue=_NOTHING):
            yield Row(old, new, old.text != new.text)


def _runs(rows: list[Row], near: list[bool]) -> Iterator[Run]:
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or near[at] != near[start]:
            run = tuple(rows[start:at])
            yield Run(run, hidden=not near[start] and len(run) > 2)
            start = at

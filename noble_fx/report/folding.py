"""Listings with equal blocks shown once: a block is folded where every listing has it equal but for numbers.

    layers.0   norm = block.norm(embed)        layers.1   norm_1 = block.norm(add_1)        equal: %0 = block.norm($0)

Names of nodes are counted in their order, a block's own (`%0`) and those from outside (`$0`) apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from noble_fx.passes.listing import Line, Listing, path_text
from noble_fx.sites.patterns import ranges

_NAME = re.compile(r"(?<![\w.'\"])[A-Za-z_]\w*")


class Shown(NamedTuple):
    """A line to be shown, or, without a node, what is said of lines that are not."""

    text: str
    node: str = ""


class Folding:
    """Which blocks of some listings of one graph are shown, and which are like one that is."""

    def __init__(self, listings: Sequence[Listing]):
        contents: dict[str, list[object]] = {}
        for at, listing in enumerate(listings):
            nodes = {line.node for line in listing.lines} | set(_NAME.findall(listing.lines[0].text))
            for block, lines in _segments(listing.lines):
                if block:
                    contents.setdefault(block, []).append((at, _content(block, lines, nodes)))
        shown: dict[object, str] = {}
        self.like = {block: shown.setdefault(tuple(content), block) for block, content in contents.items()}

    def copies(self, block: str) -> list[str]:
        """The blocks that are shown as this one, itself among them."""
        return [other for other, first in self.like.items() if first == block]

    def shown(self, listing: Listing) -> Iterator[Shown]:
        """The lines of a listing, of equal blocks the first one's."""
        waiting: list[str] = []
        for block, lines in _segments(listing.lines):
            if self.like.get(block, block) != block:
                waiting.append(block)
                continue
            yield from self._folded(waiting)
            waiting = []
            if block:
                yield self._opened(block)
            yield from (Shown(in_block(block, line.text), line.node) for line in lines)
        yield from self._folded(waiting)

    def _opened(self, block: str) -> Shown:
        count = len(self.copies(block))
        return Shown(f"# block = {path_text(block)}" + (f", one of {count} that are equal" if count > 1 else ""))

    def _folded(self, blocks: Iterable[str]) -> Iterator[Shown]:
        names: dict[str, list[str]] = {}
        for block in dict.fromkeys(blocks):
            names.setdefault(self.like[block], []).append(block)
        for first, others in names.items():
            what = f"{len(others)} blocks equal" if len(others) > 1 else "equal"
            yield Shown(f"# {_numbered(others)}: {what} to {first}")


def _segments(lines: Iterable[Line]) -> Iterator[tuple[str, list[Line]]]:
    return ((block, list(run)) for block, run in groupby(lines, lambda line: line.block))


def in_block(block: str, text: str) -> str:
    """A line with `block` for the block's own path."""
    return text.replace(f"{path_text(block)}.", "block.").replace(f"{path_text(block)}(", "block(") if block else text


def _content(block: str, lines: list[Line], nodes: set[str]) -> tuple[str, ...]:
    known = {line.node: f"%{at}" for at, line in enumerate(lines)}

    def name(found: re.Match[str]) -> str:
        text = found[0]
        return known.setdefault(text, f"${len(known)}") if text in nodes else text

    return tuple(_NAME.sub(name, in_block(block, line.text)) for line in lines)


def _numbered(names: list[str]) -> str:
    """layers.1, layers.2, layers.3 as layers.1–3."""
    holders: dict[str, list[str]] = {}
    for name in names:
        holder, _, number = name.rpartition(".")
        holders.setdefault(holder, []).append(number)
    return ", ".join(f"{holder}.{', '.join(ranges(numbers))}".strip(".") for holder, numbers in holders.items())

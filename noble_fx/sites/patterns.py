"""Equal maps of repeated blocks as one: `layers.*.mlp.up`, or `layers.[0–2,5].mlp.up` where not all are equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def pattern(name: str) -> str:
    """The name with `*` for every number."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def grouped(
    items: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable]
) -> Iterator[tuple[str, list[T]]]:
    """What has one pattern and one key, together, under the shortest name that says which; in order."""
    groups: dict[tuple[str, Hashable], list[T]] = {}
    for item in items:
        groups.setdefault((pattern(name(item)), key(item)), []).append(item)
    count = Counter(shared for shared, _ in groups)
    for (shared, _), equal in groups.items():
        names = [name(item) for item in equal]
        if len(names) == 1:
            yield names[0], equal
        else:
            yield shared if count[shared] == 1 else _numbered(names), equal


def ranges(numbers: Sequence[str]) -> Iterator[str]:
    """0, 1, 2, 5 as 0–2, 5."""
    start = before = numbers[0]
    for number in [*numbers[1:], ""]:
        if not number or int(number) != int(before) + 1:
            yield start if start == before else f"{start}–{before}"
            start = number
        before = number


def _numbered(names: Sequence[str]) -> str:
    """Names of one pattern as one, with the numbers that each place has in them."""
    places = [list(dict.fromkeys(parts)) for parts in zip(*(name.split(".") for name in names), strict=True)]
    return ".".join(parts[0] if len(parts) == 1 else f"[{','.join(ranges(parts))}]" for parts in places)

"""How far a long calculation is, in a terminal; silence anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Track = Callable[[Iterable[Any], str, int], Iterator[Any]]  # (items, what is done, how many there are or 0)


@contextmanager
def progress_bar(shown: bool) -> Iterator[Track]:
    """Inside, `track(items, text, count)` passes items on and shows how many are done, on stderr of a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:

        def track(items: Iterable[Any], text: str, count: int) -> Iterator[Any]:
            task = bar.add_task(text, total=count or None)
            for item in items:
                yield item
                bar.advance(task)
            bar.remove_task(task)

        yield track

"""What goes wrong by the user's hand. Every message names the offending thing and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self


class NobleError(ValueError):
    """Base of every error that noble_fx raises on purpose; the model is as it was before the call.

    `advice`: the arguments to call with instead, where they were tried and work. `dead_end`: the text says why not, and
    what works is still to be looked for, on this model; whoever can look raises it anew.
    """

    # No `__init__`, which torch.compile could not follow where a compiled model raises one.
    advice: Mapping[str, Any] = MappingProxyType({})
    dead_end: bool = False

    def advising(self, **advice: Any) -> Self:
        """The same error, with arguments that were tried and work."""
        self.advice = advice
        return self

    def leading_nowhere(self, dead_end: bool = True) -> Self:
        """The same error, as one that leaves open what works."""
        self.dead_end = dead_end
        return self


class ConfigError(NobleError):
    """A setting that cannot be: rank, activation, preset, selection."""


class CaptureError(NobleError):
    """A model that the asked-for capture cannot represent faithfully."""


class CheckpointError(NobleError):
    """A folder that cannot be written, or whose contents do not fit the model."""


class ExportError(NobleError):
    """A model that cannot be exported, or an exported file that cannot be used."""


class KernelError(NobleError):
    """A kernel that cannot be generated, written, compiled or launched."""


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be, as data: what a question answers where None would mean that nothing speaks against."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def printable(text: object) -> str:
    """`text` on one line that any stream can print: a control character or a lone surrogate shows as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shown(value: object) -> str:
    """A value that was passed, as Python writes it: on one line, and no longer than a message has room for."""
    return f"{printable(repr(value)):.200}"


def check_flag(name: str, value: object, error: type[NobleError]) -> None:
    """Raises `error` for what is neither True nor False: a text such as "no" would count as true."""
    if not isinstance(value, bool):
        raise error(f"{name}={shown(value)} must be True or False")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; nearest: 'a', 'b'` for the known names closest to `name`, else an empty string."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    # A fragment ("q_prj") should still find full paths ("layers.0.q_proj"): compare last components too.
    by_tail = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    tails = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_tail, n=count, cutoff=0.5)
    found = list(dict.fromkeys([*(by_tail[t] for t in tails), *close]))[:count]
    return "; nearest: " + ", ".join(map(repr, found)) if found else ""

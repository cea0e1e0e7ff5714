"""What the branches did in one stretch of a program: their shares of the sites' outputs."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noble_fx.tables import as_text, number, table
from noble_fx.training.looking.norms import floats, norm
from noble_fx.training.looking.observed import observed
from noble_fx.training.looking.observer import Call
from noble_fx.wrappers import unwrapped

if TYPE_CHECKING:
    from rich.table import Table


class Seen:
    """What `watching` saw: of each site |branch(x)| and |y|, over every call and row; `print(seen)` shows a table."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = None if model is None else weakref.ref(unwrapped(model))
        self._norms: dict[str, tuple[Tensor, Tensor]] = {}
        self._calls: dict[str, int] = {}

    @property
    def shares(self) -> dict[str, float]:
        """|branch(x)| / |y| of each site that ran, by its name."""
        return {site: _ratio([norms]) for site, norms in self._floats().items()}

    @property
    def share(self) -> float:
        """The same of all sites together; NaN where none ran."""
        return _ratio(self._floats().values())

    def is_of(self, model: nn.Module) -> bool:
        """Whether it was this model, wrapped or not, that was watched; also where that is not known any more."""
        return self._model is None or self._model() is unwrapped(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": None}  # a copy in another process has no model to know

    def note(self, call: Call) -> None:
        """Add one call of a site."""
        if not call.y.numel():
            return
        new = (norm(call.added()), norm([call.y]))
        old = self._norms.get(call.site)
        if old is not None:  # hypot, which no square of a large norm overflows
            new = tuple(torch.hypot(a.to(b.device), b) for a, b in zip(old, new, strict=True))  # type: ignore[assignment]
        self._norms[call.site] = new
        self._calls[call.site] = self._calls.get(call.site, 0) + 1

    def _floats(self) -> dict[str, tuple[float, float]]:
        flat = floats([each for pair in self._norms.values() for each in pair])
        return {site: (flat[2 * i], flat[2 * i + 1]) for i, site in enumerate(self._norms)}

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Table:
        shown = table("site")
        shown.add_column("share", justify="right")
        shown.add_column("calls", justify="right")
        for site, share in self.shares.items():
            shown.add_row(site, number(share), str(self._calls[site]))
        shown.add_row("total", number(self.share), str(sum(self._calls.values())))
        return shown


@contextmanager
def watching(model: nn.Module) -> Iterator[Seen]:
    """Inside, every forward of `model` notes each branch's share of its site's output, for `stats` or by itself.

    Put it around one step: a fused branch is computed once more there, and compiled parts run eagerly. Afterwards all
    is as it was. Ranks see what they ran themselves. Raises `ConfigError` without branches, for a model that is watched
    already, and for `DataParallel`; warns where no branch ran.
    """
    seen = Seen(model)
    with observed(model, seen.note):
        yield seen
    if not seen._norms:
        warnings.warn(
            "no branch ran while the model was watched: call the model inside the `with` block, with its branches "
            "enabled and outside of torch.func and CUDA graphs",
            stacklevel=3,
        )


def _ratio(norms: Iterable[tuple[float, float]]) -> float:
    """√(Σ branch² / Σ y²)."""
    norms = list(norms)
    branch, y = (math.hypot(*(pair[i] for pair in norms)) for i in (0, 1))
    if y == 0:
        return 0.0 if norms and branch == 0 else math.inf if norms else math.nan
    return branch / y

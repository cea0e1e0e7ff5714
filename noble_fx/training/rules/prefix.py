"""Branches that are trained at every rank at once, so that their last channels can be cut off later. Experimental.

A rank b is drawn for each step, one for the whole model (DyLoRA, arXiv 2210.07558), and only the first b channels
speak: t ⊙ mask in front of every matrix that reads channels (`branches/masks.py`). DyLoRA is of linear maps; what it
does to branches with a σ was measured (docs/rules.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from noble_fx.branches.base import Branch
from noble_fx.branches.masks import FACTORS, bare, masked
from noble_fx.errors import ConfigError, Refusal, shown
from noble_fx.training.changing.running import running
from noble_fx.training.rules.base import Rule
from noble_fx.training.rules.channels import (
    asked,
    check_silent,
    checked_rank,
    masks,
    share,
    with_places,
    without_places,
)


class Prefix(Rule):
    """Draws the rank of the next step after each; in eval mode all channels speak, `at(rank)` asks for fewer.

    `normalise`: what reads b of r channels is multiplied by 1 ("none"), r/b ("alpha", as DyLoRA does) or √(r/b)
    ("root"). Ranks are drawn from `lowest` to the largest of the model; a branch that has fewer channels than the
    widest one speaks with the same share of them. Afterwards `noble_fx.truncate`, or `close()` for all channels.
    Give it the model before that is wrapped, and save only after one of these: a file knows no masks. Raises
    `ConfigError` where channels of a σ cannot be silenced apart, and what `set_rank` raises.
    """

    def __init__(self, model: nn.Module, normalise: str = "none", lowest: int = 1, seed: int = 0) -> None:
        if normalise not in FACTORS:
            raise ConfigError(f"normalise={shown(normalise)} must be one of {', '.join(map(repr, FACTORS))}")
        found = without_places(model)
        self._model, self.rank = found.model, max(site.rank for site in found.selected)
        self.lowest = checked_rank(lowest, self.rank, "lowest")
        self._generator = torch.Generator().manual_seed(seed)

        def with_masks(branch: Branch, act: nn.Module) -> nn.Module | Refusal:
            some = next(branch.parameters())
            return check_silent(branch) or masked(act, branch.rank, normalise, some)

        self._branches = with_places(found, with_masks, "trained at other ranks")
        self.drawn = self.rank
        self.after_step()

    def after_step(self) -> None:
        """Draw the rank of the next step."""
        self.drawn = int(torch.randint(self.lowest, self.rank + 1, (), generator=self._generator))
        self._tell()

    def _tell(self) -> None:
        for branch in self._branches:
            for mask in masks(branch):
                mask.draw(share(self.drawn, self.rank, branch.rank))

    @contextmanager
    def at(self, rank: int) -> Iterator[None]:
        """Inside, the model computes what `truncate(model, rank)` would leave, in train and in eval mode."""
        with asked(self._branches, checked_rank(rank, self.rank, "rank"), self.rank):
            yield

    def close(self) -> nn.Module:
        """Take the masks out of the model, which keeps all its channels; returns it."""
        with_places(running(self._model), lambda branch, act: bare(act), "given its σ back")
        return self._model

    def state_dict(self) -> dict[str, Any]:
        """What a run that is resumed needs: the rank of the next step, and what draws the ones after it."""
        return {"drawn": self.drawn, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up again."""
        self.drawn = checked_rank(state["drawn"], self.rank, "drawn")
        self._generator.set_state(state["generator"])
        self._tell()

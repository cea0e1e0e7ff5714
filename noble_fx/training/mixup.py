"""A word about Mixup: the paper finds that strong stochastic augmentation cancels what the branches gain."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

# By name, so that nothing is imported for a program that has none of them: timm, torchvision, kornia, transformers.
_MIXING = frozenset(("Mixup", "MixUp", "FastCollateMixup", "CutMix", "RandomMixUp", "RandomMixUpV2", "RandomCutMix"))
_DEPTH = 4  # a transform in a Compose in a dataset in a loader


def warn_of_mixup(*used: Any) -> None:
    """Warn once a call where a dataset, loader, collator or transform mixes examples (Mixup, CutMix)."""
    for thing in used:
        if kind := next(_mixing(thing, _DEPTH), None):
            warnings.warn(
                f"{kind} mixes examples, and the paper (arXiv 2603.06492) finds no gain from its branches under such "
                "augmentation; compare with a plain model, or train without it",
                stacklevel=3,
            )
            return


def _mixing(thing: Any, depth: int) -> Iterator[str]:
    kinds = type(thing).__mro__
    if name := next((kind.__name__ for kind in kinds if kind.__name__ in _MIXING), None):
        yield name
    held = thing if isinstance(thing, list | tuple) else getattr(thing, "__dict__", {}).values()
    if depth and not isinstance(thing, type) and len(held) < 64:  # settings, not data
        for part in list(held):
            yield from _mixing(part, depth - 1)

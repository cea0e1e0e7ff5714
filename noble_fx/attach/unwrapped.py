"""Models that may be given branches, or lose them, where they stand: those that nobody has wrapped or sharded.

A wrapper that looked through the model's parameters when it was made (DDP, FSDP, an EMA) knows nothing of those that
come later: ranks would draw branches of their own, and no gradient of theirs would be averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from noble_fx.errors import CaptureError
from noble_fx.wrappers import own_name, wrapper

# Known to be right in either order: Dynamo looks at a layer's class in every call, checkpointing at nothing.
_EITHER_ORDER = ("", "torch.compile", "activation checkpointing")
_SAME_ON_EVERY_RANK = ("DistributedDataParallel", "replicate")
_REMEDIES = {
    "transform": "would not know of branches that come later: noble_fx.transform(model) first, then wrap it",
    "set_trainable": "has looked at what learns already: noble_fx.set_trainable(model, ...) first, then wrap it",
    "change": "would not know of other parameters than it has looked at: change the plain model, then wrap it anew",
    "remove": "would not know that its branches are gone: unwrap the model, or build it again without branches",
}


def check_unwrapped(model: nn.Module, verb: str, places: Iterable[str] = ()) -> None:
    """Raise `CaptureError` where what is around `model`, or around one of the `places` inside, would not see a change.

    `places` are names of modules or parameters that get branches or lose them; `verb` is a key of `_REMEDIES`.
    """
    places = list(places)
    for fqn, by in _wrappers(model):
        if by not in _EITHER_ORDER and (not fqn or any(f"{place}.".startswith(f"{fqn}.") for place in places)):
            shown = repr(own_name(fqn, model)) if fqn else "the model"
            raise CaptureError(f"{shown} is wrapped by {by}, which {_REMEDIES[verb]}")


def same_on_every_rank(model: nn.Module, place: str) -> bool:
    """Whether what surrounds `place` takes it for equal on all ranks, and would not look again."""
    return any(
        by in _SAME_ON_EVERY_RANK and (not fqn or f"{place}.".startswith(f"{fqn}.")) for fqn, by in _wrappers(model)
    )


def _wrappers(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Where something is wrapped around a module, and what."""
    for fqn, module in model.named_modules():
        if by := wrapper(module):
            yield fqn, by

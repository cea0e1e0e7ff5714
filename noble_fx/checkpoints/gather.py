"""A model whose tensors lie in pieces on several ranks (FSDP2, tensor parallel, FSDP1): whole tensors on rank 0.

All ranks take part, and all return or all raise: what goes wrong on one is told to the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch.distributed as dist
from torch import nn

from noble_fx.errors import CheckpointError, printable
from noble_fx.wrappers import own_name, unwrapped, wrapper

_FSDP = "FullyShardedDataParallel"  # FSDP1, which alone knows which piece is what: it is not taken off


def is_sharded(model: nn.Module) -> bool:
    """Whether a rank holds no more than its piece of some tensor."""
    distributed = sys.modules.get("torch.distributed.tensor")  # no tensor can be of its class before it is imported
    tensors = chain(model.parameters(), model.buffers())
    return (distributed is not None and any(isinstance(tensor, distributed.DTensor) for tensor in tensors)) or any(
        wrapper(module) == _FSDP for module in model.modules()
    )


def on_rank_0() -> bool:
    """Whether this process writes."""
    return dist.get_rank() == 0


def gathered(model: nn.Module) -> dict[str, Any]:
    """The whole state on rank 0's CPU, by the user's own names, and nothing elsewhere; every rank must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    root = unwrapped(model, until=_FSDP)
    names = sorted(own_name(name, model) for name, _ in unwrapped(model).named_modules())
    if any(other != names for other in _told(names)):
        raise CheckpointError(
            "the ranks hold different models (pipeline stages?), and one folder holds one model; put the stages "
            "together before save"
        )
    try:
        state = get_model_state_dict(root, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    except Exception as error:
        raise CheckpointError(f"the sharded model could not be gathered: {printable(error)}") from error
    return {own_name(name, root): value for name, value in state.items()}


@contextmanager
def agreed(ranks: bool) -> Iterator[None]:
    """With `ranks`, what is raised inside on one rank is raised on all, once all have come to the end."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
    reasons = _told(str(error) if error is not None else None) if ranks else []
    if error is not None:
        raise error
    if reason := next((reason for reason in reasons if reason is not None), None):
        raise CheckpointError(reason)


def _told(value: Any) -> list[Any]:
    """What each rank says."""
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, value)
    return said

"""What reaches the bottlenecks of a model's branches while it runs on inputs that its user gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.restore import unchanged
from noble_fx.branches.base import Branch
from noble_fx.errors import ConfigError, shown
from noble_fx.random_states import random_states_kept

ROWS_PER_BATCH, ROWS = 1024, 8192  # of each branch


def collected(model: nn.Module, branches: Sequence[Branch], inputs: Any) -> dict[int, Tensor]:
    """By the identity of each branch that was reached, the rows [rows, ·] that its `bottleneck` gave, on the CPU.

    `inputs` is one batch or a list of them: a tensor, a tuple of positional inputs, or a mapping of named ones. The
    model runs in eval mode, without gradients, and is then as it was. Raises `ConfigError` for what is no batch.
    """
    rows: dict[int, list[Tensor]] = {}
    batches = [_arguments(batch) for batch in (inputs if isinstance(inputs, list) else [inputs])]
    with unchanged(model), random_states_kept(), torch.no_grad():
        model.eval()
        for branch in branches:
            branch.register_forward_pre_hook(_collector(rows))
        for args, kwargs in batches:
            model(*args, **kwargs)
    joined = {branch: torch.cat(found)[:ROWS] for branch, found in rows.items()}
    return {branch: found for branch, found in joined.items() if len(found)}


def _arguments(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, Mapping):
        return (), batch
    raise ConfigError(
        f"inputs={shown(batch)} must be a tensor, a tuple of inputs, a dictionary of named inputs, or a list of these"
    )


def _collector(rows: dict[int, list[Tensor]]) -> Any:
    def collect(branch: Branch, args: tuple[Any, ...]) -> None:
        found = rows.setdefault(id(branch), [])
        x = args[0].reshape(-1, args[0].shape[-1])
        if sum(map(len, found)) < ROWS:
            step = -(-len(x) // ROWS_PER_BATCH)
            found.append(branch.bottleneck(x[:: max(step, 1)]).to("cpu", copy=True))

    return collect

"""What reaches the bottlenecks of a model's branches while it runs on inputs that its user gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noble_fx.attach.restore import unchanged
from noble_fx.branches.base import Branch
from noble_fx.errors import ConfigError, NobleError, printable, shown
from noble_fx.random_states import random_states_kept

ROWS_PER_BATCH, ROWS = 1024, 8192  # of each branch


def collected(model: nn.Module, branches: Sequence[Branch], inputs: Any) -> dict[int, Tensor]:
    """By the identity of each branch that was reached, the rows [rows, ·] that its `bottleneck` gave, on the CPU.

    `inputs` is one batch or a list of them: a tensor, a tuple of positional inputs, or a mapping of named ones. The
    model runs in eval mode, without gradients, and is then as it was. Raises `ConfigError` for what is no batch, for
    inputs without a row, and where the model cannot run on them.
    """
    rows: dict[int, list[Tensor]] = {}
    batches = _batches(inputs)
    if not branches:
        return {}
    with unchanged(model), random_states_kept(), torch.no_grad():
        model.eval()
        for branch in branches:
            branch.register_forward_pre_hook(_collector(rows))
        for at, (args, kwargs) in enumerate(batches):
            _run(model, args, kwargs, f"inputs[{at}]" if isinstance(inputs, list) else "inputs")
    joined = {branch: torch.cat(found)[:ROWS] for branch, found in rows.items()}
    return {branch: found for branch, found in joined.items() if len(found)}


_Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


def _batches(inputs: Any) -> list[_Arguments]:
    """Each batch as arguments of the model; raises `ConfigError` where there is none, or no row in any."""
    batches = [_arguments(batch) for batch in (inputs if isinstance(inputs, list) else [inputs])]
    if not batches:
        raise ConfigError("inputs=[] holds no batch; leave inputs out to measure on noise")
    if all(map(_is_empty, batches)):
        raise ConfigError("inputs hold no row; give a batch that has some, or leave inputs out to measure on noise")
    return batches


def _is_empty(arguments: _Arguments) -> bool:
    args, kwargs = arguments
    tensors = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    return not (args or kwargs) or (bool(tensors) and not any(tensor.numel() for tensor in tensors))


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> None:
    try:
        model(*args, **kwargs)
    except (NobleError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"the model cannot run on {name}: {type(error).__name__}: {printable(error)}; give what its forward takes"
        ) from error


def _arguments(batch: Any) -> _Arguments:
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, Mapping):
        return (), batch
    remedy = (
        "; of a loader give list(loader), or list(itertools.islice(loader, 8)) for its first batches"
        if isinstance(batch, Iterable) and not isinstance(batch, list | str)
        else ""
    )
    raise ConfigError(
        f"inputs={shown(batch)} must be a tensor, a tuple of inputs, a dictionary of named inputs, or a list of "
        f"these{remedy}"
    )


def _collector(rows: dict[int, list[Tensor]]) -> Any:
    def collect(branch: Branch, args: tuple[Any, ...]) -> None:
        found = rows.setdefault(id(branch), [])
        x = args[0].reshape(-1, args[0].shape[-1])
        if sum(map(len, found)) < ROWS:
            step = -(-len(x) // ROWS_PER_BATCH)
            found.append(branch.bottleneck(x[:: max(step, 1)]).to("cpu", copy=True))

    return collect

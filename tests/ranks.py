"""Several processes that talk by gloo, as `torchrun` starts them, for what only shows between ranks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(count: int, folder: Path, function: Callable[..., None], *args: Any) -> None:
    """Run `function(rank, folder, *args)` in `count` processes; raises what one of them raised."""
    torch.multiprocessing.spawn(_one, (count, str(folder), function, args), nprocs=count)


def _one(rank: int, count: int, folder: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    try:
        function(rank, Path(folder), *args)
    finally:
        dist.destroy_process_group()

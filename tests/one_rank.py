"""A process group of this process alone, for what PyTorch does to a model on many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def one_rank() -> Iterator[DeviceMesh]:
    """A world of one rank, and a mesh over it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@contextmanager
def first_of_two() -> Iterator[DeviceMesh]:
    """The first rank of two, of which the other is never heard: for what is cut into shards."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


def fsdp1(model: nn.Module, use_orig_params: bool = True) -> nn.Module:
    """The whole model in FSDP1, on the CPU."""
    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def fsdp2(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Each block of a `Tiny`, and the rest of it, in `fully_shard`."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """The FFN of the first block by a parallel plan."""
    return parallelize_module(model, mesh, {"blocks.0.fc1": ColwiseParallel(), "blocks.0.fc2": RowwiseParallel()})


# What is done to a model on many ranks, and how a message calls it.
PARALLEL: dict[str, Callable[[nn.Module, DeviceMesh], nn.Module]] = {
    "DistributedDataParallel": lambda model, mesh: DistributedDataParallel(model),
    "FullyShardedDataParallel": lambda model, mesh: fsdp1(model),
    "fully_shard": fsdp2,
}

"""A model with branches on several ranks, stack by stack, learns as it does in one process: the same losses to 1e-5.

Two processes in the suite, four under `make test-long`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import noble_fx
from tests.models import loud
from tests.ranks import on_ranks

WIDTH, LENGTH, BATCH, STEPS = 16, 8, 4, 4


class Block(nn.Module):
    """Pre-norm attention and FFN, [B, T, C] -> [B, T, C]; heads are as many as the rank holds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.ffn = Attention(), FFN()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class FFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 20)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def gpt(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    return loud(noble_fx.transform(GPT(), rank=3, seed=0, **settings))


TENSOR = {
    "blocks.*.attention.[qkv]_proj": ColwiseParallel(),
    "blocks.*.attention.o_proj": RowwiseParallel(),
    "blocks.*.ffn.fc1": ColwiseParallel(),
    "blocks.*.ffn.fc2": RowwiseParallel(),
}
SEQUENCE = {  # as in PyTorch's tutorial: activations between the blocks' parts are cut along the sequence
    "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
    "blocks.*.norm[12]": SequenceParallel(),
    "blocks.*.attention": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
    "blocks.*.ffn": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
    "blocks.*.attention.[qkv]_proj": ColwiseParallel(),
    "blocks.*.attention.o_proj": RowwiseParallel(output_layouts=Shard(1)),
    "blocks.*.ffn.fc1": ColwiseParallel(),
    "blocks.*.ffn.fc2": RowwiseParallel(output_layouts=Shard(1)),
    "norm": SequenceParallel(),
    "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
}


def sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


# What a user writes after `transform`, and over how many ranks the batch is cut.
STACKS = {
    "DDP": (lambda model, mesh: DistributedDataParallel(model), 2),
    "FSDP1": (
        lambda model, mesh: FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu")),
        2,
    ),
    "FSDP2": (sharded, 2),
    "TP": (lambda model, mesh: parallelize_module(model, mesh, noble_fx.noble_plan(model, TENSOR)), 1),
    "TP, sequence": (lambda model, mesh: parallelize_module(model, mesh, noble_fx.noble_plan(model, SEQUENCE)), 1),
}


def batches() -> list[Tensor]:
    """One batch, again and again, so that the loss falls."""
    return [torch.randint(20, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))] * STEPS


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(noble_fx.param_groups(model, lr=5e-3, weight_decay=0.1))


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[Tensor], rank: int = 0, parts: int = 1):
    """Of every step, the mean over ranks; rank `rank` of `parts` has its part of the batch."""
    found = []
    for batch in data:
        own = batch.chunk(parts)[rank % parts]
        loss = F.cross_entropy(model(own[:, :-1]).flatten(0, 1), own[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown = loss.detach().clone()
        if parts > 1:
            dist.all_reduce(shown)
            shown /= dist.get_world_size()
        found.append(shown.item())
    return found


def checkpointed(name: str, mesh: DeviceMesh, rank: int, folder: Path) -> list[float]:
    """Two steps on all ranks, one in rank 0's process alone, one on all again, each from a checkpoint of the last."""
    parallel, parts = STACKS[name]
    model, data = parallel(gpt(), mesh), batches()
    optimizer = optimizer_of(model)
    found = losses(model, optimizer, data[:2], rank, parts)
    dcp.save(state(model, optimizer), checkpoint_id=folder / name / "two")
    if rank == 0:
        alone = noble_fx.transform(GPT(), rank=3)  # other values, another seed
        one = optimizer_of(alone)
        restore(alone, one, folder / name / "two", no_dist=True)
        found += losses(alone, one, data[2:3])
        dcp.save(state(alone, one), checkpoint_id=folder / name / "one", no_dist=True)
    dist.barrier()
    model = parallel(noble_fx.transform(GPT(), rank=3), mesh)
    optimizer = optimizer_of(model)
    restore(model, optimizer, folder / name / "one")
    return found + losses(model, optimizer, data[3:], rank, parts)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, **settings: bool) -> None:
    held = state(model, optimizer)
    dcp.load(held, checkpoint_id=folder, **settings)
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])


def in_two_processes(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name, (parallel, parts) in STACKS.items():
        model = parallel(gpt(), mesh)
        found[name] = losses(model, optimizer_of(model), batches(), rank, parts)
        for fqn, parameter in model.named_parameters():
            if ".noble." in fqn and isinstance(parameter, DTensor):  # no sum is left to whoever reads a gradient
                assert parameter.grad.placements == parameter.placements, (name, fqn)
    for name in ("FSDP2", "TP"):
        continued = checkpointed(name, mesh, rank, folder)
        found[f"{name}, checkpoints of 2, 1, 2 processes"] = (
            continued if rank == 0 else [*found[name][:3], continued[-1]]
        )
    model = STACKS["TP"][0](gpt(), mesh)
    noble_fx.save(model, folder / "saved")
    assert torch.equal(noble_fx.load(GPT(), folder / "saved")(batches()[0]), gpt()(batches()[0]))
    (folder / f"{rank}.json").write_text(json.dumps(found))


def on_four_ranks(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    found = {}
    for name, plan in {"TP": TENSOR, "TP, sequence": SEQUENCE}.items():
        model = gpt()
        parallelize_module(model, mesh["tp"], noble_fx.noble_plan(model, plan))
        sharded(model, mesh["fsdp"])
        found[f"FSDP2 x {name}"] = losses(model, optimizer_of(model), batches(), mesh["fsdp"].get_local_rank(), 2)
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("count", "function"), [(2, in_two_processes), pytest.param(4, on_four_ranks, marks=pytest.mark.long)]
)
def test_several_processes_learn_as_one_does(count, function, tmp_path):
    on_ranks(count, tmp_path, function)
    model = gpt()
    expected = losses(model, optimizer_of(model), batches())
    assert expected[-1] < expected[0] - 0.1
    for rank in range(count):
        for name, found in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert found == pytest.approx(expected, abs=1e-5), f"{name} on rank {rank}"

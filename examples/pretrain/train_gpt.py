"""Pretrain a byte-level GPT with branches: one file, one process or many.

    python -m examples.pretrain.train_gpt --steps 1000 --out run                     stopped? the same command goes on
    torchrun --nproc-per-node 8 -m examples.pretrain.train_gpt --fsdp --compile ...  without --fsdp: DDP
    python -m examples.pretrain.train_gpt --plain --out plain                        the same model without branches

The text is --text (a file or a folder), or the source of Python's standard library. --out gets log.jsonl, a line an
evaluation, and checkpoints. The places marked NOBLE are all that a script of your own needs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sysconfig
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import noble_fx

# --- the model -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm causal attention, then a feed-forward part of four times the width, [B, T, C] -> [B, T, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.fc_in, self.fc_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention_norm(x)
        q, k, v = (
            p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.fc_out(F.gelu(self.fc_in(self.ffn_norm(x))))


class GPT(nn.Module):
    """idx [B, T] -> logits [B, T, 256], T up to the context."""

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.token(idx) + self.position(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


# --- the text --------------------------------------------------------------------------------------------------------


def read(place: Path | None) -> Tensor:
    """All bytes of a file, or of the files in a folder [n] uint8; by default Python's own *.py files."""
    root = place or Path(sysconfig.get_paths()["stdlib"])
    if not root.exists():
        raise SystemExit(f"{root} does not exist; give a file or a folder of text by --text")
    pattern = "*" if place else "*.py"
    files = [root] if root.is_file() else sorted(path for path in root.rglob(pattern) if path.is_file())
    kept = [path for path in files if "site-packages" not in path.parts]
    text = b"\n".join(path.read_bytes() for path in kept)
    if len(text) < 10_000:
        raise SystemExit(f"{root} holds {len(text)} bytes of text; give a larger file or folder by --text")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def batch_at(text: Tensor, seed: int, rows: int, context: int) -> tuple[Tensor, Tensor]:
    """Inputs [rows, context] and the bytes that follow each; depends on the seed alone."""
    starts = torch.randint(len(text) - context - 1, (rows,), generator=torch.Generator().manual_seed(seed))
    window = text[starts[:, None] + torch.arange(context + 1)].long()
    return window[:, :-1], window[:, 1:]


# --- training --------------------------------------------------------------------------------------------------------


class Run:
    """A model, its optimizers, and where it stands; `asked` is the command line."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.step = asked, 0
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = device()
        text = read(asked.text)
        cut = int(0.95 * len(text))
        self.text, self.held_out = text[:cut], text[cut:]
        torch.manual_seed(asked.seed)
        model: nn.Module = GPT(asked.width, asked.layers, asked.heads, asked.context)
        if not asked.plain:  # NOBLE: before compiling and sharding
            model = noble_fx.transform(
                model, rank=asked.rank, act=asked.act, select=asked.select, preset=asked.preset, seed=asked.seed
            )
        self.own = model.to(self.device)
        self.model = self._wrapped()
        # NOBLE: the groups; a plain model has its two usual ones
        groups = noble_fx.param_groups(
            self.own, asked.lr, asked.weight_decay, muon=asked.muon, muon_lr=asked.muon_lr if asked.muon else None
        )
        if self.rank == 0:
            print(groups)
        fused: dict[str, Any] = {"betas": (0.9, 0.95), "fused": True}
        self.optimizers: list[torch.optim.Optimizer]
        if asked.muon:
            hidden, rest = noble_fx.muon_split(groups)
            self.optimizers = [torch.optim.Muon(hidden), torch.optim.AdamW(rest, **fused)]
        else:
            self.optimizers = [torch.optim.AdamW(groups, **fused)]

    def _wrapped(self) -> nn.Module:
        blocks: Any = self.own.blocks
        if self.asked.compile:
            for block in blocks:  # by regions: one block is compiled, and all are run by it
                block.compile()
        if self.asked.fsdp:
            for block in blocks:
                fully_shard(block)
            fully_shard(self.own)
            return self.own
        return DistributedDataParallel(self.own) if self.world > 1 else self.own

    def loss(self, text: Tensor, seed: int) -> Tensor:
        """Mean cross-entropy in nats per byte of this rank's part of a batch."""
        inputs, targets = batch_at(text, seed * self.world + self.rank, self.asked.batch, self.asked.context)
        with torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext():
            logits = self.model(inputs.to(self.device))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.to(self.device).flatten())

    def train_step(self) -> Tensor:
        """One step of all optimizers; returns the loss."""
        for optimizer in self.optimizers:
            noble_fx.scale_lr(optimizer, self.asked.lr * self.schedule())  # NOBLE: every group keeps its multiplier
            optimizer.zero_grad()
        loss = self.loss(self.text, self.step)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return loss.detach()

    def schedule(self) -> float:
        """Linear warm-up, then a cosine down to 10 %."""
        warmup = max(1, self.asked.steps // 20)
        if self.step < warmup:
            return (self.step + 1) / warmup
        return 0.55 + 0.45 * math.cos(math.pi * (self.step - warmup) / max(1, self.asked.steps - warmup))

    @torch.no_grad()
    def validation_loss(self, batches: int = 8) -> float:
        """Over all ranks' parts of the same few batches of text that is not learned from."""
        self.model.eval()
        mean = torch.stack([self.loss(self.held_out, seed) for seed in range(batches)]).mean()
        self.model.train()
        if self.world > 1:
            dist.all_reduce(mean)
            mean /= self.world
        return mean.item()

    @torch.no_grad()
    def sample(self, prompt: str = "def __init__(self", length: int = 80) -> str:
        """`prompt` and the likeliest bytes after it; every rank must ask."""
        self.model.eval()
        idx = torch.tensor([list(prompt.encode())], device=self.device)
        for _ in range(length):
            idx = torch.cat([idx, self.model(idx[:, -self.asked.context :])[:, -1:].argmax(-1)], dim=1)
        self.model.train()
        return bytes(idx[0].tolist()).decode(errors="replace")

    # --- checkpoints: a folder a step, whole or not there, for any number of processes -------------------------------

    def save(self) -> None:
        """Write step-N beside the others, and let the two before it stay."""
        folder = self.asked.out / f"step-{self.step}"
        work = folder.with_name(f".{folder.name}")
        weights, state = get_state_dict(self.own, self.optimizers)
        dcp.save({"model": weights, "optimizer": state, "step": self.step}, checkpoint_id=work, no_dist=self.world == 1)
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
            for old in sorted(checkpoints(self.asked.out), key=step_of)[:-2]:
                shutil.rmtree(old)
        if self.world > 1:
            dist.barrier()

    def resume(self) -> bool:
        """Go on from the last checkpoint of --out, if there is one."""
        last = max(checkpoints(self.asked.out), key=step_of, default=None)
        if last is None:
            return False
        weights, state = get_state_dict(self.own, self.optimizers)
        held: dict[str, Any] = {"model": weights, "optimizer": state, "step": 0}
        dcp.load(held, checkpoint_id=last, no_dist=self.world == 1)
        set_state_dict(self.own, self.optimizers, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
        self.step = held["step"]
        return True


def checkpoints(out: Path) -> Iterator[Path]:
    """The whole checkpoints in a folder."""
    return out.glob("step-*")


def step_of(checkpoint: Path) -> int:
    """The step at which it was written."""
    return int(checkpoint.name.partition("-")[2])


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


# What another value of would be another model or another optimizer: a run goes on with what it began with.
OF_A_RUN = ("plain", "rank", "act", "select", "preset", "seed", "width", "layers", "heads", "context", "muon")


def check_same_run(asked: argparse.Namespace) -> bool:
    """Whether --out holds a run to go on with; ends the program where that was made with other settings."""
    log = asked.out / "log.jsonl"
    if not any(checkpoints(asked.out)) or not log.exists():
        return False
    began = json.loads(log.read_text(encoding="utf-8").partition("\n")[0])
    for name in OF_A_RUN:
        if name in began and began[name] != getattr(asked, name):
            switch = f"--{name}"
            raise SystemExit(
                f"the run in {asked.out} has {switch} {began[name]}, and this command {switch} {getattr(asked, name)}; "
                "go on with its settings, or give another --out"
            )
    return True


def train(asked: argparse.Namespace) -> None:
    """Train, log, checkpoint and sample as the command line says."""
    resumed = check_same_run(asked)
    run = Run(asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    if resumed and run.resume() and run.rank == 0:
        print(f"going on from step {run.step}")
    log = (asked.out / "log.jsonl").open("a" if resumed else "w", encoding="utf-8") if run.rank == 0 else None
    if log and not resumed:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
        versions = {"torch": torch.__version__, "noble_fx": noble_fx.__version__, "processes": run.world}
        log.write(json.dumps({**settings, **versions}) + "\n")
        log.flush()
    started, since = time.perf_counter(), run.step
    while run.step < asked.steps:
        loss = run.train_step()
        if run.step % asked.every == 0 or run.step == asked.steps:
            validation = run.validation_loss()
            seconds = (time.perf_counter() - started) / (run.step - since)
            line = {"step": run.step, "train": loss.item(), "validation": validation, "seconds_per_step": seconds}
            if log:
                log.write(json.dumps(line) + "\n")
                log.flush()
                print(f"step {run.step:6d}  validation {validation:.4f} nats/byte  {1000 * seconds:.0f} ms a step")
            run.save()
            started, since = time.perf_counter(), run.step
    text = run.sample()
    if log:
        log.close()
        print(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="train_gpt", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--out", type=Path, default=Path("gpt"), help="folder for log and checkpoints")
    made.add_argument("--text", type=Path, help="a file or a folder; Python's own library by default")
    for name, value in {
        "steps": 1000,
        "every": 100,
        "batch": 16,
        "context": 128,
        "width": 128,
        "layers": 4,
        "heads": 4,
    }.items():
        made.add_argument(f"--{name}", type=int, default=value)
    made.add_argument("--lr", type=float, default=2e-3)
    made.add_argument("--weight-decay", type=float, default=0.1)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--plain", action="store_true", help="no branches")
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--act", default="cosnet", help=", ".join(noble_fx.activation_names()))
    made.add_argument("--select", default="auto", help="which layers: auto, all, attention, ffn, or a regex")
    made.add_argument("--preset", default="paper", choices=list(noble_fx.PRESETS))
    made.add_argument("--muon", action="store_true", help="torch.optim.Muon for the hidden matrices")
    made.add_argument("--muon-lr", type=float, default=0.02)
    made.add_argument("--compile", action="store_true", help="torch.compile each block")
    made.add_argument("--fsdp", action="store_true", help="shard by FSDP2; without, several processes use DDP")
    return made


def main(argv: list[str] | None = None) -> None:
    """Train as the arguments say, in as many processes as torchrun started."""
    asked = parser().parse_args(argv)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    elif asked.fsdp:
        raise SystemExit("--fsdp needs torchrun: torchrun --nproc-per-node 1 -m examples.pretrain.train_gpt --fsdp")
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # of a checkpoint in one process
    try:
        train(asked)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; the same command goes on from the last checkpoint in {asked.out}") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()

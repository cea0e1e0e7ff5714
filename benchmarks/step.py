"""A whole training step of the demo's byte GPT on the CPU: what branches cost, however one would add them.

    python -m benchmarks step

Forward, backward and AdamW on the same tokens, in one interleaved run. `by hand` is the formula typed in, a module of
its own at each site; compiled, it is what one would use without this package. `group` stands for the fx capture, where
sites of one input are one operator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import noble_fx
from benchmarks.cpu_linear import ByHand
from noble_fx.demo.byte_gpt import ByteGPT
from noble_fx.interleaved import Timing, interleave, machine

# (layers, width, rank), a batch of sequences
SIZES = [(4, 128, 16), (4, 512, 64)]
BATCH, LENGTH = 8, 128


def by_hand(model: nn.Module, rank: int) -> nn.Module:
    """The model with each linear layer of its blocks replaced by the formula."""
    for site in noble_fx.sites(model, rank=rank):
        if site.selected:
            layer = model.get_submodule(site.fqn)
            own = ByHand(layer.in_features, layer.out_features, rank, layer.bias is not None)
            own.linear = layer
            model.set_submodule(site.fqn, own)
    return model


def models(plain: nn.Module, rank: int) -> dict[str, Callable[..., torch.Tensor]]:
    """The model in every way that there is, by name."""

    def made(**settings: object) -> nn.Module:
        return noble_fx.transform(copy.deepcopy(plain), rank=rank, seed=0, **settings)

    hand = by_hand(copy.deepcopy(plain), rank)
    return {
        "plain": copy.deepcopy(plain),
        "plain, compiled": torch.compile(copy.deepcopy(plain)),
        "by hand": hand,
        "by hand, compiled": torch.compile(copy.deepcopy(hand)),
        "noble_fx": made(),
        "noble_fx, group": made(capture="fx"),
        "noble_fx, compiled": torch.compile(made()),
        "noble_fx, its backend": torch.compile(made(), backend="noble_fx"),
    }


def step(model: nn.Module, tokens: torch.Tensor) -> Callable[[], None]:
    """One step of training, as a call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def call() -> None:
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def measure(layers: int, width: int, rank: int, rounds: int) -> list[Timing]:
    """Every way in turns, beside the plain model."""
    torch.manual_seed(0)
    plain = ByteGPT(width=width, layers=layers)
    tokens = torch.randint(0, 256, (BATCH, LENGTH + 1))
    steps = {name: step(model, tokens) for name, model in models(plain, rank).items()}
    return interleave(steps, "plain", rounds, warmup=3)


def run(rounds: int = 40) -> dict[str, object]:
    """All sizes; prints a table and returns every figure."""
    table = Table(box=None, header_style="bold")
    for column in ("layers × width, rank", "way", "ms", "over plain", "over plain compiled"):
        table.add_column(column, justify="left" if column[0] in "lw" else "right")
    figures = []
    for layers, width, rank in SIZES:
        timings = measure(layers, width, rank, rounds)
        compiled = next(timing for timing in timings if timing.name == "plain, compiled")
        for timing in timings:
            over = timing.milliseconds / compiled.milliseconds - 1
            own = f"{timing.milliseconds:.1f}", f"{timing.overhead:+.0%}", f"{over:+.0%}"
            table.add_row(f"{layers} × {width}, {rank}", timing.name, *own)
            figures.append({"layers": layers, "width": width, "rank": rank, **vars(timing)})
    Console().print(table)
    return {"machine": machine(), "rounds": rounds, "batch": [BATCH, LENGTH], "figures": figures}

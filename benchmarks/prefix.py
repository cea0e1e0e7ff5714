"""Loss against rank of a byte GPT whose branches were trained at every rank at once, beside ranks trained alone.

    python -m benchmarks prefix

`alone`: a model for each rank. `prefix`: one model of the largest rank with `Prefix`, which spends its steps on all
ranks, cut to each by `truncate`; "root" with √(r/b) before what reads b channels. `cut`, `fitted`: the one of the
largest rank that was trained as usual, its first channels kept as they are, or chosen and fitted by `set_rank`. All see
the same batches, for the same number of steps, at the same rate. `none`: that last model with its branches off.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import noble_fx
from noble_fx.demo.byte_gpt import ByteGPT
from noble_fx.demo.run import DEFAULT_NOBLE_LR, PRESET
from noble_fx.demo.text import Text, batch_at, standard_library, validation_batches
from noble_fx.demo.training import mean_loss, train
from noble_fx.interleaved import machine
from noble_fx.training.rules import Prefix

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 64, 2, 2, 64, 8
RANKS = (2, 4, 8, 16)
SEEDS = (0, 1)
Losses = dict[str, dict[str, list[float]]]  # by arm and rank, a number a seed


def run(rounds: int = 1000) -> dict[str, object]:
    """Train for `rounds` steps each, print the table, and return what is written."""
    torch.set_num_threads(1)
    text = standard_library()
    losses: Losses = {}
    for seed in SEEDS:
        _one_seed(text, rounds, seed, losses)
    mean = {arm: {rank: statistics.fmean(found) for rank, found in row.items()} for arm, row in losses.items()}
    Console().print(_table(mean))
    sizes = {"width": WIDTH, "layers": LAYERS, "context": CONTEXT, "batch": BATCH, "act": "cosnet", "preset": PRESET}
    return {"machine": machine(), **sizes, "steps": rounds, "lr": DEFAULT_NOBLE_LR, "seeds": SEEDS, "losses": losses}


def _one_seed(text: Text, steps: int, seed: int, losses: Losses) -> None:
    held_out = validation_batches(text.validation, CONTEXT, BATCH, count=32)

    def note(arm: str, rank: int, model: nn.Module) -> None:
        losses.setdefault(arm, {}).setdefault(str(rank), []).append(mean_loss(model, held_out))

    def fit(model: nn.Module, on_step: Callable[..., Any] | None = None) -> nn.Module:
        groups = noble_fx.param_groups(model, lr=DEFAULT_NOBLE_LR, weight_decay=0.1)
        train(model, groups, text, steps, BATCH, CONTEXT, seed, evaluations=1, on_step=on_step)
        return model

    whole = None
    for rank in RANKS:
        whole = fit(_built(rank, seed))
        note("alone", rank, whole)
    assert whole is not None
    inputs = [batch_at(text.train, steps + at, seed, BATCH, CONTEXT)[0] for at in range(8)]
    for rank in RANKS[:-1]:
        cut, fitted = copy.deepcopy(whole), copy.deepcopy(whole)
        noble_fx.truncate(cut, rank, untrained=True)
        note("cut", rank, cut)
        noble_fx.set_rank(fitted, rank, inputs=inputs)
        note("fitted", rank, fitted)
    for normalise in ("none", "root"):
        model = _built(RANKS[-1], seed)
        rule = Prefix(model, normalise=normalise, seed=seed)
        fit(model, lambda step, loss, rule=rule: rule.after_step())
        for rank in RANKS:
            cut = copy.deepcopy(model)
            noble_fx.truncate(cut, rank)
            note("prefix" if normalise == "none" else f"prefix, {normalise}", rank, cut)
    with noble_fx.disabled(whole):
        note("none", 0, whole)


def _built(rank: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return noble_fx.transform(ByteGPT(WIDTH, LAYERS, HEADS, CONTEXT), rank=rank, act="cosnet", preset=PRESET, seed=seed)


def _table(mean: dict[str, dict[str, float]]) -> Table:
    shown = Table(title="validation loss, nats a byte")
    shown.add_column("arm")
    for rank in RANKS:
        shown.add_column(f"rank {rank}", justify="right")
    for arm, row in mean.items():
        shown.add_row(arm, *(f"{row[str(rank)]:.3f}" if str(rank) in row else "–" for rank in RANKS))
    return shown

"""Experts of a mixture with branches, by how many experts there are: the same tokens and top-k, CPU time of one thread.

    python -m benchmarks moe

`plain` is transformers' own module in the form that is named, and each is compared with the plain one of its form. What
a branch adds goes by rows; with the number of experts grows what it costs to begin a product, as it does in the plain
module, which has one where a branch has three. The "eager" form of the library makes a gradient of all weights for each
expert, and with branches that is not run: there the overhead falls below zero.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import noble_fx
from noble_fx.interleaved import Timing, interleave, machine

TOKENS, TOP_K, HIDDEN, INNER, RANK = 1024, 2, 256, 128, 16
COUNTS = (8, 64)
FORMS = ("eager", "grouped_mm")


def experts(count: int, form: str) -> nn.Module:
    """Mixtral's experts, in one of the forms of the library."""
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = SimpleNamespace(
        num_local_experts=count,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        hidden_act="silu",
        _experts_implementation=form,
    )
    module = MixtralExperts(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return module


def measure(count: int, form: str, training: bool, rounds: int) -> list[Timing]:
    """One call, with `training` forward and backward."""
    torch.manual_seed(0)
    plain = experts(count, form)
    made = noble_fx.transform(copy.deepcopy(plain), rank=RANK, select="all", seed=0)
    x, dy = torch.randn(TOKENS, HIDDEN, requires_grad=training), torch.randn(TOKENS, HIDDEN)
    weights, index = torch.rand(TOKENS, count).topk(TOP_K)

    def once(module: nn.Module) -> Callable[[], Tensor | tuple[Tensor, ...]]:
        if not training:
            return lambda: module(x, index, weights)
        inputs = [x, *module.parameters()]
        return lambda: torch.autograd.grad(module(x, index, weights), inputs, dy)

    with torch.set_grad_enabled(training):
        variants = {"plain": once(plain), "with branches": once(made)}
        return interleave(variants, "plain", rounds, warmup=2, clock=time.process_time)


def run(rounds: int = 12) -> dict[str, object]:
    """Every number of experts in every form; prints a table and returns every figure."""
    torch.set_num_threads(1)
    table = Table(box=None, header_style="bold")
    for column in ("form", "mode", "experts", "plain, ms", "with branches, ms", "overhead"):
        table.add_column(column, justify="left" if column in ("form", "mode") else "right")
    figures = []
    for form in FORMS:
        for training in (False, True):
            for count in COUNTS:
                mode = "forward and backward" if training else "forward"
                plain, made = measure(count, form, training, rounds)
                times = [f"{timing.milliseconds:.2f}" for timing in (plain, made)]
                table.add_row(form, mode, str(count), *times, f"{made.overhead:+.0%}")
                figures.append(
                    {"form": form, "mode": mode, "experts": count, "plain_ms": plain.milliseconds}
                    | {"branches_ms": made.milliseconds, "overhead": made.overhead, "spread": made.spread}
                )
    Console().print(table)
    shape = {"tokens": TOKENS, "top_k": TOP_K, "hidden": HIDDEN, "inner": INNER, "rank": RANK}
    return {"machine": machine(), "rounds": rounds, "shape": shape, "figures": figures}

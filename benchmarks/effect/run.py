"""One run: a model of an arm trained on a task at one rate from one seed."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.effect.arms import ARMS
from benchmarks.effect.tasks import TASKS, Batch, Task
from noble_fx.demo.training import schedule

BETAS = (0.9, 0.95)
CLIP = 1.0
DIVERGED = 2.0  # times the loss of the first step
Record = dict[str, Any]


@dataclass(frozen=True, order=True)
class Run:
    """What tells one run from another; `lr` is the base's peak rate."""

    task: str
    arm: str
    steps: int
    lr: float
    seed: int


def train(run: Run, evaluations: int = 20, threads: int = 1) -> Record:
    """Train and return the record, a line of the study's file; a run that diverges ends there, and says where."""
    torch.set_num_threads(threads)
    task, arm = TASKS[run.task], ARMS[run.arm]
    model = arm.build(task, run.seed)
    optimizer = torch.optim.AdamW(arm.groups(model, run.lr), betas=BETAS, fused=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    held_out = task.held_out()
    evaluate_at = {round(run.steps * (i + 1) / evaluations) for i in range(evaluations)}
    at, validation, seconds, recent, learned, first, diverged_at = [], [], [], [], [], None, None
    for step in range(run.steps):
        started = time.perf_counter()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, run.steps)
        loss = task.loss(model, task.batch(step, run.seed))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        recent.append(loss.item())
        first = first or recent[0]
        if not math.isfinite(recent[-1]) or recent[-1] > DIVERGED * first:
            diverged_at = step + 1
            break
        if step + 1 in evaluate_at:
            at.append(step + 1)
            validation.append(round(_held_out_loss(model, task, held_out), 5))
            learned.append(round(statistics.fmean(recent), 5))
            recent.clear()
    return {
        **vars(run),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "diverged_at": diverged_at,
        "at": at,
        "validation": validation,
        "train": learned,
        "seconds_per_step": round(statistics.median(seconds), 5),
        "torch": torch.__version__,
    }


@torch.no_grad()
def _held_out_loss(model: nn.Module, task: Task, batches: list[Batch]) -> float:
    model.eval()
    losses = [task.loss(model, batch).item() for batch in batches]
    model.train()
    return statistics.fmean(losses)

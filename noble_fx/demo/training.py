"""A training loop of one screen, what it measures, and how its model writes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.demo.text import Text, batch_at, validation_batches


@dataclass
class Curve:
    """What a run measured: mean losses in nats per byte after so many optimizer steps."""

    steps: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)  # mean over the steps since the previous entry
    seconds_per_step: float = 0.0  # median, without the evaluations


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per byte, a scalar."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The loss over several batches in eval mode; the model is left in train mode."""
    model.eval()
    losses = [loss_of(model, *batch).item() for batch in batches]
    model.train()
    return statistics.fmean(losses)


def schedule(step: int, steps: int) -> float:
    """The factor on every group's peak learning rate: linear warm-up, then a cosine down to 10 %."""
    warmup = min(100, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def train(
    model: nn.Module,
    groups: list[dict[str, Any]],
    text: Text,
    steps: int,
    batch: int = 16,
    context: int = 128,
    seed: int = 0,
    evaluations: int = 40,
    on_step: Callable[[int, float], None] | None = None,
) -> Curve:
    """AdamW over `steps` batches; a group's own "lr" is its peak, so its multiplier survives the schedule."""
    groups = [dict(group) for group in groups]  # the schedule below writes into them
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)  # one call for many small tensors
    peaks = [group["lr"] for group in optimizer.param_groups]
    held_out = validation_batches(text.validation, context, batch)
    evaluate_at = {round(steps * (i + 1) / evaluations) for i in range(evaluations)}
    curve, recent, seconds = Curve(), [], []
    model.train()
    for step in range(steps):
        started = time.perf_counter()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, steps)
        loss = loss_of(model, *batch_at(text.train, step, seed, batch, context))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        seconds.append(time.perf_counter() - started)
        if step + 1 in evaluate_at:
            curve.steps.append(step + 1)
            curve.validation.append(mean_loss(model, held_out))
            curve.train.append(statistics.fmean(recent))
            recent.clear()
        if on_step:
            on_step(step + 1, loss.item())
    curve.seconds_per_step = statistics.median(seconds)
    return curve


def steps_to_reach(curve: Curve, loss: float) -> float | None:
    """The first step, interpolated between evaluations, at which the validation loss is ≤ `loss`; None if never."""
    previous: tuple[int, float] | None = None
    for step, value in zip(curve.steps, curve.validation, strict=True):
        if value <= loss:
            if previous is None:
                return float(step)
            before, above = previous
            return before + (step - before) * (above - loss) / (above - value)
        previous = step, value
    return None


@torch.no_grad()
def sample(model: nn.Module, prompt: str, length: int, context: int, seed: int = 0, temperature: float = 0.8) -> str:
    """`prompt` and `length` bytes drawn after it; bytes that are not UTF-8 show as �."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    idx = torch.tensor([list(prompt.encode())])
    for _ in range(length):
        logits = model(idx[:, -context:])[:, -1] / temperature
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        idx = torch.cat([idx, drawn], dim=1)
    return bytes(idx[0].tolist()).decode(errors="replace")

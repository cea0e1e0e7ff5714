"""What a training step of an arm takes over the plain model's, in turns on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.effect.arms import ARMS
from benchmarks.effect.tasks import Task
from noble_fx.interleaved import interleave

PLAIN = "plain"
RATE = 1e-3  # of no account to what a step takes


def measure(task: Task, arms: Sequence[str], rounds: int = 60) -> dict[str, float]:
    """The median of an arm's step over plain's in the same round, by arm."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = {arm: _step(task, arm) for arm in dict.fromkeys((PLAIN, *arms))}
        return {timing.name: round(1 + timing.overhead, 3) for timing in interleave(steps, PLAIN, rounds, warmup=5)}
    finally:
        torch.set_num_threads(threads)


def _step(task: Task, arm: str) -> Callable[[], None]:
    model = ARMS[arm].build(task, seed=0)
    optimizer = torch.optim.AdamW(ARMS[arm].groups(model, RATE), fused=True)
    batch = task.batch(0, 0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        task.loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step

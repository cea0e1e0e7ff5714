"""Text that every Python installation has, and a training loop of one screen.

The text is the source of the running Python's standard library, about 10 MB of it, split by file. Two runs with the
same seed see the same batches whatever their models draw, so that plain and NOBLE can be compared step by step.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Packages that are no part of the library proper, and two that hold generated tables rather than code.
EXCLUDED = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
}


@dataclass(frozen=True)
class Text:
    """Bytes to learn from and bytes to be judged by, each one uint8 tensor."""

    train: Tensor
    validation: Tensor
    train_files: tuple[str, ...]
    validation_files: tuple[str, ...]


@dataclass
class Curve:
    """What a run measured: mean losses in nats per byte after so many optimizer steps."""

    steps: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)  # mean over the steps since the previous entry
    seconds_per_step: float = 0.0  # median, without the evaluations


def standard_library(root: Path | None = None) -> Text:
    """The *.py files under `root` (default: of the running Python), about 5 % of the files for validation."""
    root = Path(root or sysconfig.get_paths()["stdlib"])
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    paths = [path for path in paths if not EXCLUDED.intersection(path.split("/")) and (root / path).is_file()]
    # The hash of its path decides a file's side, so a file never changes sides when others come or go.
    held_out = [path for path in paths if hashlib.sha256(path.encode()).digest()[0] < 13]
    kept = [path for path in paths if path not in set(held_out)]
    if not kept or not held_out:
        raise FileNotFoundError(f"{root} holds too few *.py files; this Python was installed without its sources")
    return Text(_read(root, kept), _read(root, held_out), tuple(kept), tuple(held_out))


def _read(root: Path, paths: list[str]) -> Tensor:
    return torch.frombuffer(bytearray(b"\n".join((root / path).read_bytes() for path in paths)), dtype=torch.uint8)


def batch_at(text: Tensor, step: int, seed: int, batch: int, context: int) -> tuple[Tensor, Tensor]:
    """The inputs [batch, context] of a step and their next bytes; depends on (seed, step) only."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(text) - context, (batch,), generator=generator)
    return _windows(text, starts, context)


def validation_batches(text: Tensor, context: int, batch: int, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    """`count` fixed batches of windows spread evenly over the text."""
    starts = torch.linspace(0, len(text) - context - 1, batch * count).long()
    return [_windows(text, part, context) for part in starts.split(batch)]


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    window = text[starts[:, None] + torch.arange(context + 1)].long()
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


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


def main() -> None:
    """Train a model with branches for 200 steps and let it write."""
    import noble_fx

    from .byte_gpt import ByteGPT

    torch.manual_seed(0)
    model = noble_fx.transform(ByteGPT(), rank=16, act="cosnet", seed=0)
    groups = noble_fx.param_groups(model, lr=2e-3, weight_decay=0.1)
    curve = train(model, groups, standard_library(), steps=200, evaluations=10)
    for step, loss in zip(curve.steps, curve.validation, strict=True):
        print(f"step {step:4d}  validation loss {loss:.3f} nats per byte")
    print(sample(model, "def __init__(self", length=200, context=128))


if __name__ == "__main__":
    main()

"""What is learned: small tasks of three kinds, each with its model, its batches and its held-out loss.

    bytes     the next byte of source text, a GPT
    masked    a quarter of the bytes hidden, an encoder that sees both sides, as BERT
    digits    8 × 8 images of digits (scikit-learn's), a ViT; with Mixup too

A batch depends on (seed, step) alone, so that every arm of a study sees the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.demo.byte_gpt import Block, ByteGPT, draw_as_gpt2
from noble_fx.demo.text import Text, batch_at, standard_library, validation_batches

Batch = tuple[Tensor, Tensor]  # inputs, and targets that a loss compares with
HIDDEN = 256  # the byte that stands for one that is hidden
SHARE_HIDDEN = 0.25
NOT_ASKED = -100  # a target that counts for nothing
HELD_OUT = 360  # of the 1,797 digits


@dataclass(frozen=True)
class Task:
    """One task: `build` makes the model of a width, `batch` the batch of (step, seed), `held_out` what judges it."""

    name: str
    kind: str
    width: int
    layers: int
    heads: int
    batch_size: int
    length: int  # of a sequence
    mixup: float = 0.0  # of Beta(mixup, mixup); 0 for none

    @property
    def rank(self) -> int:
        """An eighth of the width, as in the demo: min(K, N) / r is 8 at every width."""
        return self.width // 8

    def settings(self) -> dict[str, Any]:
        """What its runs depend on."""
        return {**asdict(self), "rank": self.rank}

    def build(self, width: int | None = None) -> nn.Module:
        """The plain model, of its own width or another, drawn from PyTorch's random numbers."""
        return _BUILD[self.kind](self, width or self.width)

    def batch(self, step: int, seed: int) -> Batch:
        """The batch of a step."""
        return _BATCH[self.kind](self, step, seed)

    def held_out(self) -> list[Batch]:
        """Batches that no step has seen."""
        return _HELD_OUT[self.kind](self)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats, a scalar; targets are classes [..], or shares of classes [.., C]."""
        inputs, targets = batch
        logits = model(inputs)
        if targets.is_floating_point():
            return F.cross_entropy(logits, targets)
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=NOT_ASKED)


class Encoder(nn.Module):
    """Blocks that see both sides, idx [B, T] of bytes or HIDDEN -> logits [B, T, 256]."""

    def __init__(self, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(HIDDEN + 1, width)
        self.position = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        draw_as_gpt2(self, layers)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.token(idx) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class DigitsViT(nn.Module):
    """A ViT on 16 patches of 2 × 2, images [B, 16, 4] -> logits [B, 10] of their mean."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.position = nn.Parameter(torch.empty(16, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10, bias=False)
        draw_as_gpt2(self, layers)
        nn.init.normal_(self.patch.weight, std=0.5)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.patch(patches) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


# --- bytes -----------------------------------------------------------------------------------------------------------


@cache
def _text() -> Text:
    return standard_library()


def _bytes_batch(task: Task, step: int, seed: int) -> Batch:
    return batch_at(_text().train, step, seed, task.batch_size, task.length)


def _bytes_held_out(task: Task) -> list[Batch]:
    return validation_batches(_text().validation, task.length, 64, count=4)


# --- masked ----------------------------------------------------------------------------------------------------------


def _hide(idx: Tensor, seed: int) -> Batch:
    """The bytes with a share of them hidden, and those as targets; depends on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(idx.shape, generator=generator) < SHARE_HIDDEN
    return idx.masked_fill(hidden, HIDDEN), idx.masked_fill(~hidden, NOT_ASKED)


def _masked_batch(task: Task, step: int, seed: int) -> Batch:
    return _hide(_bytes_batch(task, step, seed)[0], seed * 1_000_003 + step)


def _masked_held_out(task: Task) -> list[Batch]:
    batches = validation_batches(_text().validation, task.length, 64, count=4)
    return [_hide(idx, number) for number, (idx, _) in enumerate(batches)]


# --- digits ----------------------------------------------------------------------------------------------------------


@cache
def _digits() -> tuple[Batch, Batch]:
    """Images [n, 8, 8] and classes [n], to learn from and held out; raises `FileNotFoundError` without them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise FileNotFoundError("the task needs scikit-learn's digits: pip install scikit-learn") from None
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order] / 8 - 1
    classes = torch.tensor(data.target)[order]
    return (images[HELD_OUT:], classes[HELD_OUT:]), (images[:HELD_OUT], classes[:HELD_OUT])


def _patches(images: Tensor) -> Tensor:
    """[n, 8, 8] -> [n, 16, 4]."""
    return images.unflatten(1, (4, 2)).unflatten(3, (4, 2)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


def _digits_batch(task: Task, step: int, seed: int) -> Batch:
    """Images moved by a pixel at most, two of them mixed where the task says so."""
    (images, classes), _ = _digits()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    chosen = torch.randint(len(images), (task.batch_size,), generator=generator)
    down, right = torch.randint(-1, 2, (2, task.batch_size), generator=generator)
    wide = F.pad(images[chosen], (1, 1, 1, 1), value=-1)
    rows = torch.arange(8)[None, :, None] + 1 + down[:, None, None]
    columns = torch.arange(8)[None, None, :] + 1 + right[:, None, None]
    moved, targets = wide[torch.arange(task.batch_size)[:, None, None], rows, columns], classes[chosen]
    if not task.mixup:
        return _patches(moved), targets
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + step)  # distributions take no generator
        share = torch.distributions.Beta(task.mixup, task.mixup).sample()
    other = torch.randperm(task.batch_size, generator=generator)
    shares = F.one_hot(targets, 10).float()
    return _patches(share * moved + (1 - share) * moved[other]), share * shares + (1 - share) * shares[other]


def _digits_held_out(task: Task) -> list[Batch]:
    _, (images, classes) = _digits()
    return [(_patches(images), classes)]


_BUILD: dict[str, Callable[[Task, int], nn.Module]] = {
    "bytes": lambda task, width: ByteGPT(width, task.layers, task.heads, task.length),
    "masked": lambda task, width: Encoder(width, task.layers, task.heads, task.length),
    "digits": lambda task, width: DigitsViT(width, task.layers, task.heads),
}
_BATCH = {"bytes": _bytes_batch, "masked": _masked_batch, "digits": _digits_batch}
_HELD_OUT = {"bytes": _bytes_held_out, "masked": _masked_held_out, "digits": _digits_held_out}

TASKS = {
    task.name: task
    for task in (
        Task("bytes128", "bytes", width=128, layers=2, heads=4, batch_size=8, length=64),
        Task("bytes256", "bytes", width=256, layers=2, heads=8, batch_size=8, length=64),
        Task("demo", "bytes", width=128, layers=4, heads=4, batch_size=16, length=128),  # what `noble-fx demo` trains
        Task("masked128", "masked", width=128, layers=2, heads=4, batch_size=8, length=64),
        Task("digits", "digits", width=64, layers=2, heads=4, batch_size=32, length=16),
        Task("digits-mixup", "digits", width=64, layers=2, heads=4, batch_size=32, length=16, mixup=0.4),
    )
}

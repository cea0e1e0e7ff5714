"""Small models that the tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.transform import named_branches


class Block(nn.Module):
    """Pre-norm attention and FFN, with a dropout, [B, T, C] -> [B, T, C]."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.o_proj(mixed)
        return x + self.dropout(self.fc2(F.gelu(self.fc1(x))))


class Tiny(nn.Module):
    """Embedding, two blocks, a head: idx [B, T] -> logits [B, T, 20]."""

    def __init__(self, width: int = 16, layers: int = 2):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 20)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Idle(nn.Module):
    """An activation that uses one of its parameters, by a row of another, and reads a third for its value alone."""

    def __init__(self, rank: int):
        super().__init__()
        self.gain, self.spare = nn.Parameter(torch.rand(rank) + 0.5), nn.Parameter(torch.rand(rank, rank))
        self.mixer, self.read = nn.Parameter(torch.rand(2, rank)), nn.Parameter(torch.rand(rank))

    def forward(self, h: Tensor) -> Tensor:
        return torch.sin(h * self.gain + self.mixer[1:]) + self.read.detach()


class Base(nn.Module):
    """One linear layer; subclasses say what forward does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)


class WithOptional(Tiny):
    """The same with an optional argument, which no single graph can hold: captured as modules."""

    def forward(self, idx: Tensor, scale: float | None = None) -> Tensor:
        logits = super().forward(idx)
        return logits if scale is None else logits * scale


def tiny(seed: int = 0, **sizes: int) -> Tiny:
    """A `Tiny` in eval mode with weights that depend on `seed` alone."""
    torch.manual_seed(seed)
    return Tiny(**sizes).eval()


def tokens(batch: int = 2, length: int = 5) -> Tensor:
    """Token ids [batch, length]."""
    return torch.arange(batch * length).reshape(batch, length) % 20


def loud(model: nn.Module) -> nn.Module:
    """Draw every U large, so that a branch that is dropped or doubled cannot hide in the tolerance."""
    torch.manual_seed(1)
    with torch.no_grad():
        for branch in named_branches(model).values():
            branch.up.normal_(std=0.5)
    return model


def silent(model: nn.Module) -> nn.Module:
    """Set every U to zero: the base model exactly."""
    with torch.no_grad():
        for branch in named_branches(model).values():
            branch.up.zero_()
    return model


def transformed(capture: str = "modules", rank: int = 4, **settings: object) -> nn.Module:
    """A `Tiny` with branches that matter."""
    return loud(noble_fx.transform(tiny(), rank=rank, capture=capture, seed=0, **settings))


def compiled_programs(model: nn.Module) -> list[noble_fx.Program]:
    """The graphs that Dynamo made of it, without the one that is made to be looked at."""
    return [program for program in noble_fx.programs(model) if program.mode == "compiled"]


class Gamma(nn.Module):
    """An activation with an operator that no kernel has."""

    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return torch.lgamma(h.square() + 1)

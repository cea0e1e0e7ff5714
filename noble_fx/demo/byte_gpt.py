"""A byte-level GPT: 256 symbols, no tokenizer, every dimension in sight.

    idx [B, T]  ->  token + position  ->  blocks  ->  LayerNorm  ->  head  ->  logits [B, T, 256]

One block is `x + attention(norm(x))`, then `x + ffn(norm(x))`. The forward takes one tensor and has no branch that
depends on it, so `torch.fx.symbolic_trace` sees the whole model, for any batch and any T up to the context.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention, causal unless told otherwise, [B, T, C] -> [B, T, C].

    No biases: LayerNorm's shift has just moved the input, and a constant added to every key cancels in the softmax.
    """

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # [B, T, C] -> [B, heads, T, C / heads]
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """GELU between two linear maps, [B, T, C] -> [B, T, C], four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(width, 4 * width)
        self.fc_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(F.gelu(self.fc_in(x)))


class Block(nn.Module):
    """Pre-norm transformer block, [B, T, C] -> [B, T, C]."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class ByteGPT(nn.Module):
    """The language model, idx [B, T] of bytes as int64 -> logits [B, T, 256] of the next byte; T ≤ context."""

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4, context: int = 128) -> None:
        super().__init__()
        self.token = nn.Embedding(256, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

        draw_as_gpt2(self, layers)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.token(idx) + self.position[: idx.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def draw_as_gpt2(model: nn.Module, layers: int) -> None:
    """N(0, 0.02) everywhere; what writes into the residual stream is scaled down with the depth; biases are zero."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            residual = name.endswith(("out_proj.weight", "fc_out.weight"))
            nn.init.normal_(parameter, std=0.02 * (2 * layers) ** -0.5 if residual else 0.02)
        elif name.endswith(("fc_in.bias", "fc_out.bias")):
            nn.init.zeros_(parameter)

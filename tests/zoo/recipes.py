"""Models in the manner of public repositories that are no packages, with their names for things."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.entry import VOCABULARY, Entry, features, pixels, tokens


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(-3, -2)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    y = F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v), is_causal=causal)
    return y.transpose(-3, -2).flatten(-2)


class CausalSelfAttention(nn.Module):
    """nanoGPT's: q, k and v of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(_attend(*self.c_attn(x).chunk(3, -1), causal=True))


class MLP(nn.Module):
    """nanoGPT's."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.gelu, self.c_proj = nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """nanoGPT's."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(32), CausalSelfAttention(), nn.LayerNorm(32), MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """karpathy's nanoGPT: everything in a ModuleDict, the head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        blocks = nn.ModuleList([Block() for _ in range(2)])
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(VOCABULARY, 32), "h": blocks, "ln_f": nn.LayerNorm(32)})
        self.lm_head = nn.Linear(32, VOCABULARY, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.transformer.wte(input_ids)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class TitanAttention(nn.Module):
    """torchtitan's."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(32, 32, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(_attend(self.wq(x), self.wk(x), self.wv(x), causal=True))


class TitanFeedForward(nn.Module):
    """torchtitan's: w1 gates w3."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(*shape, bias=False) for shape in ((32, 48), (48, 32), (32, 48)))

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TokenChoiceTopKRouter(nn.Module):
    """torchtitan's: a linear `gate`, then a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).softmax(-1)


class TitanMoE(nn.Module):
    """A mixture in torchtitan's names; every expert sees every token, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.router = TokenChoiceTopKRouter()
        self.experts = nn.ModuleList([TitanFeedForward() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        return sum(scores[..., i, None] * expert(x) for i, expert in enumerate(self.experts))


class TransformerBlock(nn.Module):
    """torchtitan's."""

    def __init__(self, mixture: bool) -> None:
        super().__init__()
        self.attention, self.attention_norm, self.ffn_norm = TitanAttention(), nn.RMSNorm(32), nn.RMSNorm(32)
        self.moe_enabled = mixture
        if mixture:
            self.moe = TitanMoE()
        else:
            self.feed_forward = TitanFeedForward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + (self.moe if self.moe_enabled else self.feed_forward)(self.ffn_norm(x))


class Titan(nn.Module):
    """torchtitan's decoder: layers in a ModuleDict, the head called `output`."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings, self.norm = nn.Embedding(VOCABULARY, 32), nn.RMSNorm(32)
        self.layers = nn.ModuleDict({"0": TransformerBlock(False), "1": TransformerBlock(True)})
        self.output = nn.Linear(32, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tok_embeddings(input_ids)
        for layer in self.layers.values():
            x = layer(x)
        return self.output(self.norm(x))


class DiTBlock(nn.Module):
    """A diffusion transformer's block: scales, shifts and gates come from the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(32, elementwise_affine=False) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(32, 96), "proj": nn.Linear(32, 32)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(32, 64), "fc2": nn.Linear(64, 32)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(32, 192))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        h = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attn.proj(_attend(*self.attn.qkv(h).chunk(3, -1), causal=False))
        h = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.mlp.fc2(F.gelu(self.mlp.fc1(h)))


class DiT(nn.Module):
    """Facebook's DiT: x [B, T, 8], its timestep t [B] -> [B, T, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(8, 32)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))})
        self.blocks = nn.ModuleList([DiTBlock() for _ in range(2)])
        self.final_layer = nn.ModuleDict({"linear": nn.Linear(32, 8)})

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = self.t_embedder.mlp((t[:, None] * torch.arange(1, 17, device=t.device)).sin())
        x = self.x_embedder(x)
        for block in self.blocks:
            x = block(x, c)
        return self.final_layer.linear(x)


class Attention(nn.Module):
    """vit-pytorch's: `to_qkv`, and `to_out` as a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.to_qkv = nn.LayerNorm(32), nn.Linear(32, 96, bias=False)
        self.to_out = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(_attend(*self.to_qkv(self.norm(x)).chunk(3, -1), causal=False))


class FeedForward(nn.Module):
    """vit-pytorch's: a Sequential called `net`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 48), nn.GELU(), nn.Dropout(0.0), nn.Linear(48, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PlainViT(nn.Module):
    """vit-pytorch's ViT: layers are pairs in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 32), nn.LayerNorm(32))
        self.layers = nn.ModuleList([nn.ModuleList([Attention(), FeedForward()]) for _ in range(2)])
        self.mlp_head = nn.Linear(32, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = F.unfold(pixel_values, 8, stride=8).transpose(1, 2)
        x = self.to_patch_embedding(patches)
        for attention, feed_forward in self.layers:
            x = x + attention(x)
            x = x + feed_forward(x)
        return self.mlp_head(x.mean(1))


def _noise() -> dict[str, Any]:
    return {**features(6, 8), "t": torch.tensor([0.2, 0.7])}


RECIPES = [
    Entry("nanoGPT", NanoGPT, tokens),
    Entry("torchtitan", Titan, tokens),
    Entry("DiT", DiT, _noise),
    Entry("vit-pytorch", PlainViT, pixels),
]

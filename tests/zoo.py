"""Real architectures from tiny random configurations, and what is expected of each.

python -m tests.zoo            writes docs/zoo.md
python -m tests.zoo --times    seconds that the whole check of each takes
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx

VOCABULARY = 64


@dataclass(frozen=True)
class Entry:
    """One architecture: how to build it, its inputs, and the sites expected in each capture that applies."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    expected: Mapping[str, int]  # capture -> sites with select="all"
    refuses: str = ""  # part of the CaptureError where the export capture cannot hold the model


def transform_entry(entry: Entry, capture: str, model: nn.Module) -> nn.Module:
    """The model with branches of rank 2 at every site."""
    examples = entry.inputs() if capture == "export" else None
    return noble_fx.transform(model, rank=2, capture=capture, select="all", seed=0, example_kwargs=examples)


def ids(length: int = 6) -> Tensor:
    """Token ids [2, length]."""
    return torch.arange(2 * length).reshape(2, length) * 7 % (VOCABULARY - 4) + 2


def tokens() -> dict[str, Any]:
    """Inputs of a language model."""
    return {"input_ids": ids()}


def pixels(size: int = 32) -> dict[str, Any]:
    """An image [2, 3, size, size]."""
    return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size)}


def _hf(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = __import__("transformers", fromlist=[model])
        return getattr(transformers, model)(getattr(transformers, config)(use_cache=False, **settings))

    return build


_LM: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
    "vocab_size": VOCABULARY, "max_position_embeddings": 32,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_ENC = {name: value for name, value in _LM.items() if name != "num_key_value_heads"}


def _clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    part = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    text = {**part, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 1, "pad_token_id": 0}
    vision = {**part, "image_size": 32, "patch_size": 16}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


# --- plain PyTorch ---------------------------------------------------------------------------------------------------


class CNN(nn.Module):
    """3×3 and 1×1 convolutions, then an MLP: x [B, 3, 8, 8] -> [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 1, stride=2)
        self.norm = nn.BatchNorm2d(24)
        self.fc1, self.fc2 = nn.Linear(24, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.mix(torch.relu(self.conv(x)))))
        return self.fc2(torch.relu(self.fc1(h.mean((2, 3)))))


class LSTMClassifier(nn.Module):
    """Embedding, LSTM, a linear on the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(VOCABULARY, 16), nn.LSTM(16, 24, batch_first=True)
        self.hidden, self.score = nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.score(torch.relu(self.hidden(self.lstm(self.embed(input_ids))[0][:, -1])))


class Branching(nn.Module):
    """Python that decides on the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.two(torch.relu(self.one(x)))
        return h if h.sum() > 0 else -h


class Tied(nn.Module):
    """An output head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(self.embed(input_ids))))


class Twice(nn.Module):
    """One block, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.block(x)
        return self.out(x + self.block(x))


class Functional(nn.Module):
    """Products with bare parameters: a fused qkv read in slices, mm, einsum, and experts [E, K, N] and [E, N, K]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(48, 16) * 0.2)
        self.proj = nn.Parameter(torch.randn(16, 16) * 0.2)
        self.mixed = nn.Parameter(torch.randn(16, 4, 6) * 0.2)
        self.up = nn.Parameter(torch.randn(3, 16, 20) * 0.2)
        self.down = nn.Parameter(torch.randn(3, 16, 20) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, w) for w in self.qkv.chunk(3))
        x = x + F.scaled_dot_product_attention(q, k, v) @ self.proj
        h = torch.einsum("btc,chd->bthd", x, self.mixed).flatten(2)
        rows = x.flatten(0, 1).expand(3, -1, -1)
        y = torch.bmm(torch.relu(torch.bmm(rows, self.up)), self.down.transpose(1, 2)).sum(0).view_as(x)
        return torch.cat([x + y, h], dim=-1)


def features(length: int = 6, width: int = 16, name: str = "x") -> dict[str, Any]:
    """Features [2, length, width]."""
    return {name: torch.linspace(-2, 2, 2 * length * width).sin().reshape(2, length, width)}


_ENCODER = {"d_model": 32, "nhead": 2, "dim_feedforward": 48, "batch_first": True}

ZOO = [
    Entry("GPT-2", _hf("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=1, n_head=2, vocab_size=VOCABULARY,
                       n_positions=32, bos_token_id=0, eos_token_id=1), tokens, {"modules": 4, "export": 4}),
    Entry("Llama", _hf("LlamaForCausalLM", "LlamaConfig", **_LM), tokens, {"modules": 7, "export": 7}),
    Entry("Qwen3", _hf("Qwen3ForCausalLM", "Qwen3Config", **_LM, head_dim=16), tokens, {"modules": 7, "export": 7}),
    Entry("Gemma", _hf("GemmaForCausalLM", "GemmaConfig", **_LM, head_dim=16), tokens, {"modules": 7, "export": 7}),
    Entry("Mixtral", _hf("MixtralForCausalLM", "MixtralConfig", **_LM, num_local_experts=3,
                          num_experts_per_tok=3), tokens,
          {"modules": 4, "export": 6}),
    Entry("OLMo 2", _hf("Olmo2ForCausalLM", "Olmo2Config", **_LM), tokens, {"modules": 7, "export": 7}),
    # Its linears are a subclass with a forward of its own; its head is tied.
    Entry("Falcon", _hf("FalconForCausalLM", "FalconConfig", hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=0, eos_token_id=1), tokens,
          {"modules": 4, "export": 4}),
    # Its router is an nn.Linear that returns a tuple.
    Entry("Phi-3.5-MoE", _hf("PhimoeForCausalLM", "PhimoeConfig", **_LM, num_local_experts=3, num_experts_per_tok=2),
          tokens, {"modules": 4, "export": 6}),
    Entry("BERT", _hf("BertForMaskedLM", "BertConfig", **_ENC), tokens, {"modules": 6, "export": 6}),
    Entry("ModernBERT", _hf("ModernBertForMaskedLM", "ModernBertConfig", **_ENC, cls_token_id=2, sep_token_id=3,
                            attn_implementation="sdpa"), tokens, {"modules": 4, "export": 4}),
    Entry("T5", _hf("T5ForConditionalGeneration", "T5Config", d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2,
                    vocab_size=VOCABULARY, pad_token_id=0, decoder_start_token_id=0, eos_token_id=1),
          lambda: {"input_ids": ids(), "decoder_input_ids": ids(5)}, {"modules": 16, "export": 16}),
    Entry("ViT", _hf("ViTForImageClassification", "ViTConfig", hidden_size=32, num_hidden_layers=1,
                     num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=16), pixels,
          {"modules": 6, "export": 6}),
    Entry("Swin", _hf("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=4, embed_dim=16,
                      depths=[1, 1], num_heads=[2, 2], window_size=4), pixels, {"modules": 13, "export": 13}),
    Entry("CLIP", _clip, lambda: {**tokens(), **pixels()}, {"modules": 14, "export": 14}),
    Entry("Whisper", _hf("WhisperForConditionalGeneration", "WhisperConfig", d_model=32, encoder_layers=1,
                         decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
                         decoder_ffn_dim=48, vocab_size=VOCABULARY, num_mel_bins=8, max_source_positions=8,
                         max_target_positions=16, pad_token_id=0, bos_token_id=0, eos_token_id=1,
                         decoder_start_token_id=2),
          lambda: {"input_features": features(8, 16)["x"], "decoder_input_ids": ids()},
          {"modules": 16, "export": 16}),
    Entry("Mamba", _hf("MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=1, vocab_size=VOCABULARY,
                       state_size=4, pad_token_id=0, bos_token_id=0, eos_token_id=1), tokens,
          {"modules": 3, "export": 3}),
    Entry("nn.Transformer", lambda: nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **_ENCODER),
          lambda: {**features(6, 32, "src"), **features(5, 32, "tgt")}, {"modules": 10, "export": 10}),
    Entry("nn.TransformerEncoder", lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**_ENCODER), 2),
          lambda: features(6, 32, "src"), {"modules": 8, "export": 8}),
    Entry("CNN + MLP", CNN, lambda: {"x": pixels(8)["pixel_values"]}, {"fx": 3, "modules": 3, "export": 3}),
    Entry("LSTM classifier", LSTMClassifier, tokens, {"fx": 1, "modules": 1, "export": 1}),
    Entry("decides on values", Branching, lambda: features(4, 12), {"modules": 2}, refuses="decides on the values"),
    Entry("tied weights", Tied, tokens, {"fx": 1, "modules": 1, "export": 1}),
    Entry("a block called twice", Twice, features, {"fx": 3, "modules": 3, "export": 3}),
    Entry("bare parameters", Functional, features, {"export": 5}),
]  # fmt: skip


# --- docs/zoo.md -----------------------------------------------------------------------------------------------------

HEAD = """# The zoo

What `noble_fx` finds in real architectures, built from tiny random configurations with `select="all"` and rank 2.
Written by `python -m tests.zoo`; `tests/test_zoo.py` holds every number, and checks for each row that U = 0 is the
original model, that gradients reach every branch parameter, that an untouched checkpoint loads, and that torch.compile
gives the same loss.

A dash is a capture that does not apply: **fx** declines what one graph cannot hold, **export** what no graph can, and
**modules** reaches layers alone, not products with bare parameters.

| architecture | fx | modules | export | how the sites are written (export) | left out, and why |
|---|---:|---:|---:|---|---|
"""


def row(entry: Entry) -> str:
    """One line of the table, measured."""
    sites: tuple[noble_fx.Site, ...] = ()
    cells = []
    for capture in ("fx", "modules", "export"):
        torch.manual_seed(0)
        try:
            sites = noble_fx.sites(transform_entry(entry, capture, entry.build()))
            cells.append(str(sum(site.selected for site in sites)))
        except (noble_fx.CaptureError, noble_fx.ConfigError):
            cells.append("–")
    kinds = Counter(f"{site.kind} {site.layout}".strip() for site in sites if site.selected)
    reasons = Counter(site.reason for site in sites if not site.selected)
    listed = [", ".join(f"{n} × {name}" for name, n in found.items()) or "–" for found in (kinds, reasons)]
    return f"| {entry.name} | {' | '.join(cells)} | {listed[0]} | {listed[1]} |"


def print_times() -> None:
    """Seconds per architecture and capture, of everything that `tests/test_zoo.py` does with it."""
    from tests.test_zoo import CASES, test_architecture

    torch.set_num_threads(1)  # as in the tests
    ZOO[0].build()  # imports transformers
    for entry, capture in CASES:
        start = time.perf_counter()
        test_architecture(entry, capture)
        print(f"{time.perf_counter() - start:6.1f} s  {entry.name}, {capture}", flush=True)


def main() -> None:
    """Write docs/zoo.md, or print the times."""
    if "--times" in sys.argv[1:]:
        print_times()
        return
    path = Path(__file__).parents[1] / "docs" / "zoo.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEAD + "\n".join(map(row, ZOO)) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()

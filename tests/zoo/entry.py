"""One architecture of the zoo: how it is built and called, and how what is found in it is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import noble_fx
from noble_fx.sites.blocks import HEAD, ROUTER, TIED

VOCABULARY = 64


@dataclass(frozen=True)
class Entry:
    """One architecture: what builds it with random weights, and its inputs."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """What `select="all"` finds in one: `roles` and `left_out` of the modules capture, sites of the other captures.

    A capture that is not named declines; `export_refuses` is a part of what it then says. `silent` is a part of the
    name of the branch that these inputs give no gradient.
    """

    roles: str
    left_out: str = ""
    graphs: Mapping[str, int] = field(default_factory=dict)
    export_refuses: str = ""
    silent: str = ""

    @property
    def modules(self) -> int:
        """How many sites the modules capture takes."""
        words = [word for part in self.roles.split(" · ") if part for word in part.split(": ")[-1].split()]
        return sum(int(word.partition("×")[2] or 1) for word in words)


def transform_entry(entry: Entry, capture: str, model: nn.Module) -> nn.Module:
    """The model with branches of rank 2 at every site."""
    examples = entry.inputs() if capture == "export" else None
    return noble_fx.transform(model, rank=2, capture=capture, select="all", seed=0, example_kwargs=examples)


_ORDER = ("attention", "ffn", "mixer", "embedding", "position", "modulation", "router", "head", "other")
_PARTS = ("q", "k", "v", "kv", "qkv", "in", "gate", "state", "out")


def roles_of(sites: Iterable[noble_fx.Site]) -> str:
    """The roles of the chosen sites: "attention: q k v out · ffn: in out×2 · other"."""
    counts: dict[str, Counter[str]] = {}
    for site in sites:
        if site.selected:
            group, _, part = site.role.partition(".")
            counts.setdefault(group, Counter())[part] += 1
    written = []
    for group in sorted(counts, key=_ORDER.index):
        parts = sorted(counts[group], key=lambda part: _PARTS.index(part) if part else -1)
        words = [_times(part or group, counts[group][part]) for part in parts]
        written.append(words[0] if parts == [""] else f"{group}: {' '.join(words)}")
    return " · ".join(written)


def left_out_of(sites: Iterable[noble_fx.Site]) -> str:
    """Why the other sites were not chosen: "head, router×2"."""
    counts = Counter(_short(site.reason) for site in sites if not site.selected)
    return ", ".join(_times(reason, n) for reason, n in counts.items())


def _times(word: str, n: int) -> str:
    return word if n == 1 else f"{word}×{n}"


def _short(reason: str) -> str:
    short = {HEAD.reason: "head", ROUTER.reason: "router", TIED.reason: "tied weight"}
    if reason.startswith("a bare parameter"):
        return "bare parameter"
    if reason.startswith(ROUTER.reason):
        return "router"
    if "has a forward of its own" in reason:
        return "a forward of its own"
    if reason.startswith("rank 2 is not below"):
        return "too narrow"
    return short.get(reason, reason)


# --- inputs ----------------------------------------------------------------------------------------------------------


def ids(length: int = 6) -> Tensor:
    """Token ids [2, length]."""
    return torch.arange(2 * length).reshape(2, length) * 7 % (VOCABULARY - 4) + 2


def tokens() -> dict[str, Any]:
    """Inputs of a language model."""
    return {"input_ids": ids()}


def two_texts() -> dict[str, Any]:
    """Inputs of an encoder and a decoder."""
    return {"input_ids": ids(), "decoder_input_ids": ids(5)}


def pixels(size: int = 32) -> dict[str, Any]:
    """An image [2, 3, size, size]."""
    return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size)}


def sound() -> dict[str, Any]:
    """A waveform [2, 400]."""
    return {"input_values": torch.linspace(-2, 2, 800).sin().reshape(2, 400)}


def features(length: int = 6, width: int = 16, name: str = "x") -> dict[str, Any]:
    """Features [2, length, width]."""
    return {name: torch.linspace(-2, 2, 2 * length * width).sin().reshape(2, length, width)}


# --- transformers ----------------------------------------------------------------------------------------------------


def hugging_face(model: str, **settings: Any) -> Callable[[], nn.Module]:
    """A class of transformers, built from its configuration."""

    def build() -> nn.Module:
        cls = getattr(__import__("transformers", fromlist=[model]), model)
        return cls(cls.config_class(**{"use_cache": False, **settings}))

    return build


SPECIAL: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
PART: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
ENCODER: dict[str, Any] = {**PART, **SPECIAL, "max_position_embeddings": 32}
DECODER: dict[str, Any] = {**ENCODER, "num_key_value_heads": 2}

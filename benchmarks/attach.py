"""What it takes to add branches to a model of 70 billion parameters on the meta device, beside LoRA on the same layers.

    pip install peft
    python -m benchmarks attach

A Llama of 80 layers from its config; both add something of rank 64 to its 560 linear layers, in turns, on fresh models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import noble_fx
from noble_fx.interleaved import machine

RANK = 64
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}


def llama() -> nn.Module:
    """The model, without memory."""
    import transformers

    with torch.device("meta"):
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))


def with_branches(model: nn.Module) -> int:
    """How many layers have a branch now."""
    made = noble_fx.transform(model, rank=RANK)
    return sum(hasattr(module, "noble") for module in made.modules())


def with_lora(model: nn.Module) -> int:
    """How many layers have LoRA's matrices now."""
    import peft

    made = peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules=list(LAYERS)))
    return sum(hasattr(module, "lora_A") for module in made.modules())


def run(rounds: int = 5) -> dict[str, object]:
    """Both, in turns; prints seconds and returns every figure."""
    import peft

    ways: dict[str, Callable[[nn.Module], int]] = {"transform": with_branches, "peft.get_peft_model": with_lora}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    layers: dict[str, Any] = {}
    for _ in range(rounds):
        for name, add in ways.items():
            model = llama()
            start = time.perf_counter()
            layers[name] = add(model)
            seconds[name].append(time.perf_counter() - start)
    table = Table("way", "layers", "s", box=None, header_style="bold")
    for name, spent in seconds.items():
        table.add_row(name, str(layers[name]), f"{statistics.median(spent):.2f}")
    Console().print(table)
    return {"machine": machine(), "peft": peft.__version__, "layers": layers, "seconds": seconds}

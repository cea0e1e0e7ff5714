"""LISA as a callback of Hugging Face's Trainer: of the blocks, branches and all, a few learn at a time.

python examples/optimizers/lisa.py
"""

import random
import tempfile
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import noble_fx


class Lisa(TrainerCallback):
    """Every `period` steps `active` of the `blocks` are drawn to learn; the optimizer forgets what the others had."""

    def __init__(self, blocks: Iterable[nn.Module], active: int = 2, period: int = 20, seed: int = 0) -> None:
        self.blocks, self.active, self.period, self.seed = list(blocks), active, period, seed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer has all groups by now, since `param_groups` leaves out what is frozen."""
        self.learning = [[p for p in block.parameters() if p.requires_grad] for block in self.blocks]
        self.draw(state.global_step, kwargs["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.period == 0:
            self.draw(state.global_step, kwargs["optimizer"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in (p for block in self.learning for p in block):
            parameter.requires_grad_(True)

    def draw(self, step: int, optimizer: Any) -> None:
        """By the step, so that a run which goes on draws what it would have drawn."""
        drawn = random.Random(f"{self.seed} {step // self.period}").sample(range(len(self.blocks)), self.active)
        for index, parameters in enumerate(self.learning):
            for parameter in parameters:
                parameter.requires_grad_(index in drawn)
                if index not in drawn:
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)


class NobleTrainer(noble_fx.NobleTrainerMixin, Trainer):
    """The Trainer, with the branches in optimizer groups of their own."""


def main() -> None:
    """A tiny Llama, of whose four blocks one learns at a time."""
    config = LlamaConfig(vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                         num_attention_heads=2, bos_token_id=None, eos_token_id=None)  # fmt: skip
    model = noble_fx.transform(LlamaForCausalLM(config), rank=4, seed=0)
    text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog; " * 40))
    rows = [{"input_ids": row, "labels": row} for row in text[: len(text) // 32 * 32].view(-1, 32)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, max_steps=20, learning_rate=5e-3, logging_steps=10, report_to=[],
                                      save_strategy="no", use_cpu=not torch.cuda.is_available())  # fmt: skip
        callback = Lisa(model.model.layers, active=1, period=5)
        NobleTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()


if __name__ == "__main__":
    main()

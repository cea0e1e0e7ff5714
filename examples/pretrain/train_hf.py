"""Pretrain a small Llama with branches by Hugging Face's Trainer, save it, read it back and let it write.

    python -m examples.pretrain.train_hf --steps 200 --out llama          # again with --resume to go on
    torchrun --nproc-per-node 2 -m examples.pretrain.train_hf ...          # DDP: the Trainer does it

Text is the source of Python's standard library, a byte a token. What differs from a script without branches is marked.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import noble_fx
from noble_fx.demo.text import standard_library


class NobleTrainer(noble_fx.NobleTrainerMixin, transformers.Trainer):  # 1: branches in groups of their own
    """The Trainer, whose optimizer has the groups of `noble_fx.param_groups`."""


class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Pieces of `context` bytes, one after the other, as the Trainer wants them."""

    def __init__(self, text: Tensor, context: int) -> None:
        self.rows = text[: len(text) // context * context].view(-1, context)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = self.rows[i].long()
        return {"input_ids": row, "labels": row}


def llama(width: int, layers: int, context: int) -> Any:
    """A Llama of random weights over 256 symbols."""
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train as the arguments say; returns the losses that the Trainer measured on the validation files."""
    asked = parser().parse_args(argv)
    transformers.set_seed(asked.seed)
    model = llama(asked.width, asked.layers, asked.context)
    if not asked.plain:
        model = noble_fx.transform(model, rank=asked.rank, act=asked.act, seed=asked.seed)  # 2
    if asked.text is not None and not asked.text.is_dir():
        raise SystemExit(f"--text {asked.text} is no folder; give one with *.py files in it")
    text = standard_library(asked.text)
    arguments = transformers.TrainingArguments(
        output_dir=str(asked.out / "checkpoints"),
        max_steps=asked.steps,
        per_device_train_batch_size=asked.batch,
        learning_rate=asked.lr,
        weight_decay=0.1,
        warmup_steps=max(1, asked.steps // 20),
        lr_scheduler_type="cosine",  # it multiplies the rates that it finds, so their ratios stay
        logging_steps=max(1, asked.steps // 20),
        save_steps=max(1, asked.steps // 4),
        save_total_limit=2,
        report_to=[],
        seed=asked.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = NobleTrainer(
        model=model,
        args=arguments,
        train_dataset=Windows(text.train, asked.context),
        eval_dataset=Windows(text.validation[: 64 * asked.context], asked.context),
    )
    last = any((asked.out / "checkpoints").glob("checkpoint-*"))
    if asked.resume and not last:
        print(f"no checkpoint in {asked.out} yet: starting anew (one is written every {arguments.save_steps} steps)")
    trainer.train(resume_from_checkpoint=asked.resume and last)
    measured: dict[str, float] = trainer.evaluate()
    trainer.save_model(str(asked.out / "model"))  # config.json says how the branches were made
    if trainer.is_world_process_zero():
        print(f"validation loss {measured['eval_loss']:.4f} nats per byte")
        print(written(asked.out / "model", asked.plain))
    return measured


def written(folder: Path, plain: bool) -> str:
    """What the model that `folder` holds makes of a beginning."""
    kind = transformers.AutoModelForCausalLM
    model: Any = kind.from_pretrained(folder) if plain else noble_fx.from_pretrained(kind, folder)  # 3
    start = torch.tensor([list(b"def __init__(self")])
    answer = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=40, do_sample=False)
    return bytes(answer[0].tolist()).decode(errors="replace")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="train_hf", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--out", type=Path, default=Path("llama"), help="folder for checkpoints and the model")
    made.add_argument("--text", type=Path, help="folder of *.py files; Python's own library by default")
    made.add_argument("--steps", type=int, default=200)
    made.add_argument("--batch", type=int, default=8, help="rows a device and step")
    made.add_argument("--context", type=int, default=128)
    made.add_argument("--width", type=int, default=128)
    made.add_argument("--layers", type=int, default=2)
    made.add_argument("--lr", type=float, default=2e-3)
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--act", default="cosnet", help=", ".join(noble_fx.activation_names()))
    made.add_argument("--plain", action="store_true", help="no branches, for comparison")
    made.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    made.add_argument("--seed", type=int, default=0)
    return made


if __name__ == "__main__":
    main()

"""A Llama with branches, trained by Hugging Face's Trainer, saved and read back. A whole script: pretrain/.

python examples/03_hugging_face.py
"""

import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import noble_fx


class NobleTrainer(noble_fx.NobleTrainerMixin, Trainer):
    """The Trainer, with the branches in optimizer groups of their own."""


text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog; " * 40))
rows = [{"input_ids": row, "labels": row} for row in text[: len(text) // 32 * 32].view(-1, 32)]

config = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    bos_token_id=None,
    eos_token_id=None,
)
model = noble_fx.transform(LlamaForCausalLM(config), rank=8, seed=0)

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        logging_steps=10,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = NobleTrainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(f"{folder}/model")
    again = noble_fx.from_pretrained(AutoModelForCausalLM, f"{folder}/model")

ids = text[None, :8].to(model.device)
assert torch.equal(again.to(model.device)(ids).logits, model.eval()(ids).logits)
print(again.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)[0].tolist())

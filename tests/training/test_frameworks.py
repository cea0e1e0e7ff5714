"""One model, trained by a loop of one's own, by Trainer, Accelerate and Lightning: the same steps.

Every row of the data is the same, so that the order in which a framework draws them does not matter.
"""

import accelerate
import lightning
import pytest
import torch
import transformers
from torch import nn

import noble_fx
from tests.models import loud

STEPS, LR, DECAY = 4, 5e-3, 0.1
ROW = torch.arange(12) % 7 + 3
LLAMA = transformers.LlamaConfig(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def model() -> nn.Module:
    """In float64: Adam makes what rounding leaves of a tiny gradient a whole step, and frameworks round otherwise."""
    torch.manual_seed(0)
    return loud(noble_fx.transform(transformers.LlamaForCausalLM(LLAMA), rank=4, seed=0)).double()


def groups(made: nn.Module) -> list[dict]:
    return noble_fx.param_groups(made, lr=LR, weight_decay=DECAY)


def factor(step: int) -> float:
    return 1 - step / STEPS


def by_hand() -> nn.Module:
    made = model().train()
    optimizer = torch.optim.AdamW(groups(made))
    batch = ROW.expand(2, -1)
    for step in range(STEPS):
        noble_fx.scale_lr(optimizer, LR * factor(step))
        optimizer.zero_grad()
        made(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
    return made


def by_trainer(folder) -> nn.Module:
    class NobleTrainer(noble_fx.NobleTrainerMixin, transformers.Trainer):
        pass

    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=LR,
        weight_decay=DECAY,
        lr_scheduler_type="linear",
        warmup_steps=0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [{"input_ids": ROW, "labels": ROW}] * (2 * STEPS)
    trainer = NobleTrainer(model=model(), args=arguments, train_dataset=rows)
    trainer.train()
    return trainer.model


def by_accelerate(folder) -> nn.Module:
    accelerator, made = accelerate.Accelerator(cpu=True), model().train()
    optimizer = torch.optim.AdamW(groups(made))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    made, optimizer, scheduler = accelerator.prepare(made, optimizer, scheduler)
    batch = ROW.expand(2, -1)
    for _ in range(STEPS):
        accelerator.backward(made(input_ids=batch, labels=batch).loss)
        accelerator.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return accelerator.unwrap_model(made)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = model()

    def training_step(self, batch, index):
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(groups(self))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def by_lightning(folder) -> nn.Module:
    module, rows = Module(), torch.utils.data.DataLoader([ROW] * (2 * STEPS), batch_size=2)
    module.model.train()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_steps=STEPS,
        gradient_clip_val=1.0,
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(module, rows)
    return module.model


@pytest.mark.parametrize("framework", [by_trainer, by_accelerate, by_lightning])
def test_the_same_steps_as_a_loop_of_ones_own(framework, tmp_path):
    expected, start = by_hand(), model()
    found = framework(tmp_path)
    batch = ROW.expand(2, -1)
    with torch.no_grad():
        loss, other, before = (each.eval()(input_ids=batch, labels=batch).loss for each in (expected, found, start))
    assert loss < before - 0.1
    print(framework.__name__, abs(loss - other).item())
    assert abs(loss - other) < 1e-9
    theirs = dict(found.named_parameters())
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(theirs[name], parameter, atol=1e-9, rtol=0, msg=name)

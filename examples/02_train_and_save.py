"""Train a model with branches for a few steps, save it, and load it into a plain model.

python examples/02_train_and_save.py
"""

import tempfile

import torch
from torch.nn import functional as F

import noble_fx


def build() -> torch.nn.Module:
    """A plain model: what your own code makes."""
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))


torch.manual_seed(0)
model = noble_fx.transform(build(), rank=16, seed=0)

# Branches learn at rates of their own: the groups have the multipliers of the paper.
groups = noble_fx.param_groups(model, lr=1e-3, weight_decay=0.1)
print(groups)
optimizer = torch.optim.AdamW(groups)

goal = torch.randn(64, 64) / 8
for step in range(60):
    noble_fx.scale_lr(optimizer, 1e-3 * min(1, (step + 1) / 10))  # a warm-up that keeps the multipliers
    x = torch.randn(32, 64)
    loss = F.mse_loss(model(x), torch.sin(x @ goal))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1}: loss {loss:.4f}")

with tempfile.TemporaryDirectory() as folder:
    noble_fx.save(model, f"{folder}/checkpoint")  # model.safetensors and noble_config.json
    again = noble_fx.load(build(), f"{folder}/checkpoint")

x = torch.randn(4, 64)
assert torch.equal(again(x), model(x))

"""Fine-tune a model with branches by an adapter of peft, merge it, and export what is left: no adapter, no extra node.

pip install peft
python examples/neighbours/peft_merged.py
"""

import tempfile
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx

LAYERS = ["0", "2"]
ADAPTERS: dict[str, Any] = {
    "LoRA": peft.LoraConfig(r=4, lora_alpha=4, use_rslora=True, target_modules=LAYERS),
    "RandLoRA": peft.RandLoraConfig(r=16, randlora_alpha=32, target_modules=LAYERS),
    "MiSS": peft.MissConfig(r=16, target_modules=LAYERS),
}


def pretrained() -> nn.Module:
    """A model that was trained with branches, which stay for good."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    return noble_fx.transform(model, rank=4, seed=0)


def fine_tune(model: nn.Module, goal: Tensor, steps: int = 100) -> list[float]:
    """Adapters alone learn; the losses."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 32)
        loss = F.mse_loss(model(x), x @ goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def merge(model: Any, x: Tensor) -> nn.Module:
    """The adapter in W, and a proof: an adapter that reads W past the layer, or scales what it gives, is refused.

    Such an adapter was trained beside something else than what merging leaves (peft's DoRA, and MiSS as "bat").
    """
    with torch.no_grad():
        before = model.eval()(x)
        merged = model.merge_and_unload()
        error = (merged(x) - before).abs().max().item()
    if error > 1e-4 * before.abs().max().item():
        raise ValueError(f"merged, the model differs by {error:.1e}: this adapter does not go with branches")
    return merged


def main() -> None:
    """Each adapter on the same model."""
    torch.manual_seed(0)
    goal, x = torch.randn(32, 2) @ torch.randn(2, 32) / 8, torch.randn(5, 32)
    for name, config in ADAPTERS.items():
        tuned = peft.get_peft_model(pretrained(), config)
        losses = fine_tune(tuned, goal)
        merged = merge(tuned, x)
        with tempfile.TemporaryDirectory() as folder:
            report = noble_fx.export_onnx(merged, (x,), f"{folder}/merged.onnx")
        print(f"{name:<9} loss {losses[0]:.2f} to {losses[-1]:.2f}, {report.nodes} nodes in the file")


if __name__ == "__main__":
    main()

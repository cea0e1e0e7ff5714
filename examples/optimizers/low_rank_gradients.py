"""GaLore, APOLLO or Fira for the matrices that have a branch, plain AdamW for branches and all else.

pip install pytorch_optimizer
python examples/optimizers/low_rank_gradients.py
"""

from typing import Any

import pytorch_optimizer
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx

# A rate of their own, since `scale` multiplies what they learn by.
LOW_RANK = {"lr": 2e-2, "rank": 8, "update_proj_gap": 50, "scale": 0.25, "projection_type": "std"}


def low_rank_groups(model: nn.Module, lr: float, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups of `param_groups`, with the library's `keys` on the base weights of the layers that have a branch.

    The keys belong on a group: given to the optimizer itself, they would be every group's, the branches' too.
    """
    sites = [site for site in noble_fx.sites(model) if site.selected]
    projected = [model.get_submodule(site.fqn).weight for site in sites]
    taken = {id(weight) for weight in projected}
    others = [p for name, p in model.named_parameters() if ".noble." not in name and id(p) not in taken]
    return noble_fx.param_groups(model, lr, base=[{"params": projected, **keys}, {"params": others}])


def kept(optimizer: torch.optim.Optimizer) -> int:
    """How many numbers the optimizer keeps, a projector's among them."""
    held = [vars(value).values() if hasattr(value, "ortho_matrix") else [value] for state in optimizer.state.values()
            for value in state.values()]  # fmt: skip
    return sum(value.numel() for values in held for value in values if isinstance(value, torch.Tensor))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 200) -> float:
    """The mean loss of the last ten steps on a small problem with one answer."""
    torch.manual_seed(0)
    goal, losses = torch.randn(64, 64) / 8, []
    for _ in range(steps):
        x = torch.randn(32, 64)
        loss = F.mse_loss(model(x), torch.sin(x @ goal))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def build() -> nn.Module:
    """A small model with branches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    return noble_fx.transform(model, rank=8, seed=0)


def main() -> None:
    """Train the same model by each, and say what each keeps."""
    for name in ("AdamW", "GaLore", "APOLLO", "Fira"):
        model = build()
        optimizer = (
            torch.optim.AdamW(noble_fx.param_groups(model, lr=5e-3))
            if name == "AdamW"
            else getattr(pytorch_optimizer, name)(low_rank_groups(model, 5e-3, LOW_RANK))
        )
        print(f"{name:<7} loss {train(model, optimizer):.4f}, {kept(optimizer):,} numbers kept")


if __name__ == "__main__":
    main()

"""Linear branches with a number s between D and U, and the whole gradient G that their own come from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.branches.factors import Factors

K, N, RANK, SCALE = 12, 9, 3, 0.5


class Scaled(noble_fx.Branch):
    """s (x Dᵀ) Uᵀ with s = 1/2."""

    def __init__(self, in_features, out_features, rank, config, role="other"):
        super().__init__(in_features, out_features, rank, config, role)
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.down)
        nn.init.normal_(self.up)

    def forward(self, x, rows=None):
        return SCALE * F.linear(F.linear(x, self.down), self.up if rows is None else self.up[rows])

    def factors(self):
        return [Factors("", self.down, self.up, SCALE)]


def model(layers: int = 1) -> nn.Module:
    """`layers` frozen linears K → N with such a branch, side by side in a list, in float64."""
    torch.manual_seed(0)
    made = nn.ModuleList(nn.Linear(K, N) for _ in range(layers))
    noble_fx.transform(made, rank=RANK, branch=Scaled, select="all", seed=0)
    for layer in made:
        layer.weight.requires_grad_(False)
        layer.bias.requires_grad_(False)
    return made.double()


def with_gradients(made: nn.Module, seed: int = 1) -> list[Tensor]:
    """Give each branch the gradients of a loss whose G = dL/d(ΔW) [N, K] are drawn; returns these."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for layer in made:
        g = torch.randn(N, K, generator=generator, dtype=torch.float64)
        branch = layer.noble
        branch.up.grad = SCALE * g @ branch.down.detach().T
        branch.down.grad = SCALE * branch.up.detach().T @ g
        drawn.append(g)
    return drawn


def projections(branch: noble_fx.Branch) -> tuple[Tensor, Tensor]:
    """P_U [N, N] on the columns of U, and P_D [K, K] on the rows of D."""
    up, down = branch.up.detach(), branch.down.detach()
    return up @ torch.linalg.pinv(up), torch.linalg.pinv(down) @ down


def w_step(branch: noble_fx.Branch) -> Tensor:
    """s (U ḡD + ḡU D) [N, K]: what a small step along the gradients does to s U D."""
    return SCALE * (branch.up.detach() @ branch.down.grad + branch.up.grad @ branch.down.detach())

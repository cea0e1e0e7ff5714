"""Products, reductions, transposes, views and constants in a kernel, against float64."""

import pytest
import torch
from torch import nn

from noble_fx.codegen.generate import generate
from noble_fx.codegen.plan import make_plan
from noble_fx.errors import KernelError
from tests.codegen.one_layer import Pointwise, branch_of, check, layer_of
from tests.samples import crossed, long

FUNCTIONS = {
    "softmax": lambda h: torch.softmax(h, -1),
    "centred": lambda h: h - h.mean(-1, keepdim=True),
    "norm": lambda h: h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-3),
    "largest": lambda h: h - h.amax(-1, keepdim=True).detach(),
    "smallest": lambda h: h - h.amin(-1, keepdim=True).detach(),
    "summed and spread": lambda h: (h * 0.1).sum(-1, keepdim=True).expand_as(h) + h,
    "summed away and back": lambda h: (h * 0.1).sum(-1).unsqueeze(-1) * h,
    "there and back": lambda h: (h.unsqueeze(-2) * 2).squeeze(-2).sin(),
    "ones": lambda h: h.sin() + torch.ones_like(h) * 0.5,
    "full": lambda h: h.sin() * torch.full_like(h, 1.5),
}


# One tile of channels, and three of them with the last ragged.
@pytest.mark.parametrize(("name", "rank"), crossed(list(FUNCTIONS), [12, 136]))
def test_in_a_kernel(name, rank):
    check(branch_of(lambda _: Pointwise(FUNCTIONS[name]), rank), rows=35)


class Mixture(nn.Module):
    """Parameters of every shape: matrices of other widths, a scalar, a row, a buffer, a shared vector."""

    def __init__(self, rank):
        super().__init__()
        self.wide, self.back = nn.Linear(rank, 3 * rank), nn.Linear(rank, rank, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.row = nn.Parameter(torch.rand(1, rank))
        self.shared = nn.Parameter(torch.rand(rank))
        self.register_buffer("window", torch.linspace(0.5, 1.5, rank))
        self.register_buffer("keep", torch.arange(rank) % 3 != 0)

    def forward(self, h):
        a, b, c = self.wide(h).chunk(3, dim=-1)
        mixed = self.back(torch.sin(a * self.shared) * torch.sigmoid(b) + c * self.window)
        return torch.where(self.keep, mixed * self.scale, mixed + self.row) + self.shared


@pytest.mark.parametrize("rank", [1, long(2), long(16), 21, long(70), 130])
def test_parameters_of_every_shape(rank):
    check(branch_of(Mixture, rank))


class Through(nn.Module):
    """A bottleneck in the bottleneck: products with sides of one channel, and of a few."""

    def __init__(self, rank, width):
        super().__init__()
        self.inwards, self.outwards = nn.Linear(rank, width), nn.Linear(width, rank, bias=False)

    def forward(self, h):
        return self.outwards(torch.tanh(self.inwards(h))) + h


@pytest.mark.parametrize(("rank", "width"), crossed([20, 1], [1, 3, 40]))
def test_products_of_every_width(rank, width):
    check(branch_of(lambda rank: Through(rank, width), rank))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda h: h.view(-1, 4, 3).sum(-1).repeat(1, 3), "mixes rows|mixes axes|not in the lowering table"),
        (lambda h: torch.cumsum(h, -1), "cumsum"),
    ],
)
def test_refused_with_the_reason(function, reason):
    with pytest.raises(KernelError, match=reason):
        generate(make_plan(layer_of([branch_of(lambda rank: Pointwise(function), 12)]), "interpreter"))

import re

import pytest
import torch
from torch import nn

from noble_fx.branches.activations import Mixer
from noble_fx.branches.channels import Axis
from noble_fx.branches.widths import Widths, widths
from noble_fx.config import PRESETS
from noble_fx.errors import Refusal


class Reversed(nn.Module):
    def forward(self, h):
        return h.flip(-1)


class Turned(nn.Module):
    """h A with A [in, out], and a residual."""

    def __init__(self, rank):
        super().__init__()
        self.matrix, self.gain = nn.Parameter(torch.ones(rank, rank)), nn.Parameter(torch.ones(1, rank))

    def forward(self, h):
        return h + torch.tanh(h @ self.matrix)


class Odd(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.table = nn.Parameter(torch.ones(rank + 1))

    def forward(self, h):
        return h * self.table[1:]


def test_spaces_lie_between_matrices():
    def act(rank):
        return nn.Sequential(nn.Linear(rank, 2 * rank), nn.GLU(), nn.Tanh(), nn.Linear(rank, rank))

    found = widths(act(3), act(5), 3, 5)
    assert found == Widths(
        {
            "0.weight": (Axis(1, False, 2), Axis(0, True)),
            "0.bias": (Axis(1, False, 2),),
            "3.weight": (Axis(2, False), Axis(1, True)),
            "3.bias": (Axis(2, False),),
        },
        ("0", "3"),
        2,
    )
    assert widths(act(5), act(3), 5, 3) == found


def test_a_width_of_its_own_between_two_matrices():
    def act(rank):
        return nn.Sequential(nn.Linear(rank, 7), nn.Tanh(), nn.Linear(7, rank))

    found = widths(act(2), act(4), 2, 4)
    assert isinstance(found, Widths)
    assert found.axes["0.weight"] == (None, Axis(0, True))
    assert found.axes["2.weight"] == (Axis(2, False), None)


def test_a_part_that_multiplies_from_the_other_side():
    found = widths(Turned(3), Turned(4), 3, 4)
    assert isinstance(found, Widths)
    assert found.axes["matrix"] == (Axis(0, True), Axis(0, False))


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda rank: nn.Softmax(-1), "the others change"),
        (lambda rank: Reversed(), "the others change"),
        (Odd, "'table' of its Odd is \\[4\\] for rank 3 and \\[6\\] for rank 5"),
        (lambda rank: nn.Sequential(*[nn.Tanh()] * rank), "made of other parts"),
        (lambda rank: nn.Sequential(mixer := Mixer(rank, PRESETS["paper"]), nn.Tanh(), mixer), "at two places"),
    ],
    ids=["softmax", "reversed", "odd", "parts", "twice"],
)
def test_what_is_not_understood_is_refused(act, reason):
    found = widths(act(3), act(5), 3, 5)
    assert isinstance(found, Refusal)
    assert re.search(reason, found.reason)

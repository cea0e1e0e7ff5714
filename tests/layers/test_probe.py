"""Forwards that nobody here wrote are run without values before a branch is put beside them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx
from noble_fx import CaptureError, Refusal
from noble_fx.layers.probe import why_no_map
from tests.layers.test_registry import augmented


class Pair(nn.Linear):
    """Megatron's layers: the bias is handed on."""

    def forward(self, x: Tensor):
        return F.linear(x, self.weight), self.bias


class Grouped(nn.Linear):
    """DeepSeek-V4's: rows of the weight go with groups of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...gk,gnk->...gn", x.unflatten(-2, (3, -1)).squeeze(-2), self.weight.unflatten(0, (3, -1)))


class Appending(nn.Linear):
    """Idefics': more outputs than the weight has rows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), x], dim=-1)


class ChannelsLast(nn.Conv1d):
    """A CTC head: a convolution that takes [B, T, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Pair(8, 6), r"makes a tuple of [2, 3, 8], not [2, 3, 6]"),
        (Grouped(8, 6), r"makes [2, 3, 2] of [2, 3, 8], not [2, 3, 6]"),
        (Appending(8, 6), r"makes [2, 3, 14] of [2, 3, 8], not [2, 3, 6]"),
        (ChannelsLast(8, 8, 1), "ChannelsLast is a subclass of nn.Conv1d with a forward of its own"),
    ],
)
def test_a_forward_that_is_no_linear_map_of_its_input_is_found_out(layer, reason):
    model = nn.Sequential(layer, nn.Linear(8, 8))
    state = torch.get_rng_state()
    found = {site.fqn: site for site in noble_fx.sites(model, rank=2)}
    assert reason in found["0"].reason
    assert found["1"].selected
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_probe_did_not_see_is_an_error_at_the_call():
    class Flips(nn.Linear):
        pair = False

        def forward(self, x: Tensor):
            return (super().forward(x), self.bias) if self.pair else super().forward(x)

    model = augmented(Flips(8, 6))
    model(torch.randn(3, 8))
    model[0].pair = True
    with pytest.raises(CaptureError, match=r"Flips.forward gives a tuple where its linear map gives \[3, 6\]"):
        model(torch.randn(3, 8))


def test_a_probe_touches_nothing_of_the_layer():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(8, 6)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    layer, hooked = Counting(), []
    layer.register_forward_hook(lambda *_: hooked.append(1))
    weight = layer.weight.clone()
    assert why_no_map(layer, 8, 6) is None
    assert (layer.calls.item(), hooked, torch.equal(layer.weight, weight)) == (0, [], True)
    assert not layer.weight.is_meta


def test_a_forward_that_fails_says_how():
    class Picky(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise TypeError("takes a tuple\nand more")

    assert why_no_map(Picky(8, 6), 8, 6) == Refusal(
        "test_a_forward_that_fails_says_how.<locals>.Picky has a forward of its own, which does not take [2, 3, 8]: "
        "TypeError: takes a tuple"
    )

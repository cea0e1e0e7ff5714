"""Constants of σ folded into the matrices beside it: exact, for every activation, and only what is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from noble_fx import PRESETS, Refusal, activation_names
from noble_fx.branches.activations import Cosine, Mixer, ScaleShift, Signed, build_activation
from noble_fx.branches.folded import Cos, fold_constants

R, K, N = 4, 5, 3
PAPER = PRESETS["paper"]


def value(act, down, down_bias, up, up_bias, x):
    t = act(torch.nn.functional.linear(x, down, down_bias))
    return torch.nn.functional.linear(t, up, up_bias)


def check(act: nn.Module) -> nn.Module | Refusal:
    """Fold `act` between random D, d and U, compare in float64; returns the new σ or the refusal."""
    act = act.double()
    with torch.no_grad():
        for parameter in act.parameters():
            parameter.normal_()
    down, bias, up = torch.randn(R, K).double(), torch.randn(R).double(), torch.randn(N, R).double()
    parts = fold_constants(act, down, bias, up, None, "mine")
    if isinstance(parts, Refusal):
        return parts
    new_down, new_bias, new_act, new_up, new_up_bias = parts
    x = torch.randn(7, K).double()
    expected = value(act, down, bias, up, None, x)
    torch.testing.assert_close(value(new_act, new_down, new_bias, new_up, new_up_bias, x), expected)
    return new_act


@pytest.mark.parametrize("name", activation_names())
def test_every_activation_of_the_zoo(name):
    folded = check(build_activation(name, R, PRESETS["reference"]))
    if isinstance(folded, Refusal):
        assert folded.reason in (
            "σ (mine) has no constants to fold",
            "no matrix stands next to the constants of σ (mine)",
        )
    else:
        assert not any(type(part) in (Cosine, ScaleShift, Signed) for part in folded.modules())


PARTS = {
    "cosine": lambda: Cosine(R, PAPER),
    "mixer": lambda: Mixer(R, PAPER),
    "affine": lambda: ScaleShift(R),
    "scale": lambda: ScaleShift(R, shift=False),
    "tanh": nn.Tanh,
    "signed": lambda: Signed(nn.Tanh(), flip=True),
    "linear": lambda: nn.Linear(R, R),
    "nothing": nn.Identity,
}


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=6))
def test_any_chain_of_known_parts_says_the_same(names):
    torch.manual_seed(0)
    check(nn.Sequential(*(PARTS[name]() for name in names)))


def test_two_cosines_and_a_mixer_are_left_of_cosnet():
    assert [type(part) for part in check(build_activation("cosnet", R, PAPER))] == [Cos, Mixer, Cos]


def test_a_part_that_is_not_known_stays_as_it_is():
    class Own(Cosine):
        def forward(self, h):
            return super().forward(h) ** 2

    assert check(Own(R, PAPER)) == Refusal("σ (mine) has no constants to fold")
    hooked = Cosine(R, PAPER)
    hooked.register_forward_hook(lambda module, args, output: output * 3)
    assert check(hooked) == Refusal("σ (mine) has no constants to fold")

"""An activation's graphs compute the activation and its derivative, and what cannot be traced says why."""

import pytest
import torch
from torch import nn

from noble_fx import PRESETS, activation_names
from noble_fx.branches.activations import build_activation
from noble_fx.branches.keys import activation_key
from noble_fx.branches.trace import activation_program, why_untraceable
from tests.models import Idle

RANK = 5


def key_of(act: nn.Module) -> str:
    return activation_key(act, "test", RANK)


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("name", activation_names())
def test_graphs_against_autograd(name, rows):
    torch.manual_seed(0)
    act = build_activation(name, RANK, PRESETS["reference"]).double()
    program = activation_program(key_of(act), RANK, torch.float64)
    h = torch.randn(rows, RANK, dtype=torch.float64, requires_grad=True)
    dt = torch.randn(rows, RANK, dtype=torch.float64)
    parameters = list(act.parameters())
    t = act(h)
    wanted = torch.autograd.grad(t, [h, *parameters], dt)
    with torch.no_grad():
        torch.testing.assert_close(program.forward(h, *parameters), t)
        again, *found = program.backward(h, *parameters, dt)
    torch.testing.assert_close(again, t)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_which_parameters_are_not_used():
    act = Idle(RANK)
    program = activation_program(key_of(act), RANK, torch.float32)
    assert [program.names[at] for at in sorted(program.unused)] == ["spare", "read"]
    assert activation_program(key_of(nn.PReLU()), RANK, torch.float32).unused == ()


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, h):
        self.seen.add_(1)
        return h


class DataDependent(nn.Module):
    def forward(self, h):
        return h if h.sum() > 0 else -h


class HiddenTensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = [torch.ones(RANK)]

    def forward(self, h):
        return h * self.hidden[0]


class Flagged(nn.Module):
    def forward(self, h):
        return 2 * h if self.training else h


class Counting(nn.Module):
    calls = 0

    def forward(self, h):
        self.calls += 1
        return self.calls * h


class Lambda(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, h):
        return self.fn(h)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (nn.Dropout(0.5), "draws random numbers"),
        (nn.RReLU(), "draws random numbers"),
        (InPlace(), "changes a tensor in place"),
        (DataDependent(), "while tracing"),
        (HiddenTensor(), "neither a parameter nor a buffer"),
        (Flagged(), "something else in train mode than in eval mode"),
        (Counting(), "something else each time"),
        (Lambda(lambda h: h if torch.is_grad_enabled() else 2 * h), "something else where no gradients are recorded"),
        (Lambda(lambda h: h - h.mean(0)), "mixes rows"),
        (Lambda(lambda h: h.cumsum(-2)), "mixes rows"),
    ],
    ids=[
        "dropout",
        "rrelu",
        "in place",
        "data",
        "hidden",
        "modes",
        "state",
        "grad mode",
        "mean over rows",
        "cumsum over rows",
    ],
)
def test_refused_with_the_reason(act, reason):
    assert reason in why_untraceable(key_of(act), RANK).reason


def test_a_trace_does_not_see_the_callers_state():
    act = build_activation("cosnet", RANK, PRESETS["paper"])
    with torch.inference_mode(), torch.autocast("cpu"):
        program = activation_program(key_of(act), RANK, torch.float32)
    h = torch.randn(3, RANK)
    torch.testing.assert_close(program.forward(h, *act.parameters()), act(h))


def test_buffers_are_inputs_without_gradients():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(RANK))
            self.register_buffer("fixed", torch.full((RANK,), 2.0))

        def forward(self, h):
            return torch.tanh(h * self.gain) * self.fixed

    act = Scaled()
    program = activation_program(key_of(act), RANK, torch.float32)
    h, dt = torch.randn(3, RANK), torch.randn(3, RANK)
    assert program.parameters == 1
    assert len(program.backward(h, act.gain, act.fixed, dt)) == 3  # t, dh, dgain


@pytest.mark.parametrize("rank", [112, 113, 128, 256])
@pytest.mark.parametrize("name", ["cosnet", "cosnet_double"])
def test_rounding_at_a_wide_bottleneck_is_no_mixing_of_rows(name, rank):
    assert why_untraceable(activation_key(build_activation(name, rank, PRESETS["paper"]), name, rank), rank) is None

"""σ's graphs as Triton: whole activations against float64, lanes that hold nothing, what is refused and why."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from noble_fx.branches.activations import activation_names
from noble_fx.codegen.generate import generate
from noble_fx.codegen.plan import make_plan
from noble_fx.codegen.sigma.in_kernel import tensor_name
from noble_fx.errors import KernelError
from tests.codegen.one_layer import Pointwise, branch_of, check, layer_of, run, truth_of
from tests.fuzz.budget import fuzzed
from tests.samples import ACTIVATIONS, crossed, sampled


@pytest.mark.parametrize("act", sampled(activation_names(), ACTIVATIONS))
def test_every_activation_of_the_zoo(act):
    check(branch_of(act, rank=12))


@pytest.mark.parametrize(("rows", "dtype"), crossed([1, 31, 32, 100], [torch.float32, torch.bfloat16, torch.float16]))
def test_ragged_rows(rows, dtype):
    check(branch_of("cosnet", 20), rows, dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_leaks_from_lanes_that_hold_nothing(value):
    """log 0 = -inf in a padded lane, times the zero of a padded weight, would be NaN."""

    class Log(nn.Module):
        def __init__(self, rank):
            super().__init__()
            self.scale, self.mixer = nn.Parameter(torch.rand(rank) + 0.5), nn.Linear(rank, rank)

        def forward(self, h):
            return self.mixer(torch.log(self.scale * (h * h + 0.1)))

    branch = branch_of(Log, 20)
    with torch.no_grad():
        branch.act.scale.uniform_(0.5, 1.5)
    check(branch)
    with torch.no_grad():
        branch.float().down[3, 5] = value
    layer = layer_of([branch])
    tensors = {
        "x": torch.randn(40, 20),
        "weight": torch.zeros(24, 20),
        "bias": torch.zeros(24),
        "dy": torch.ones(40, 24),
    }
    tensors |= {"down": branch.down, "down_bias": branch.down_bias, "up": branch.up}
    tensors |= {tensor_name(name): parameter for name, parameter in branch.act.named_parameters()}
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    y = run(make_plan(layer, "interpreter"), tensors)["y"]
    truth = truth_of(layer, [branch], tensors)["y"]
    assert not torch.isfinite(truth).all()
    assert torch.equal(y.isnan(), truth.isnan())


def lgamma(rank):
    return Pointwise(torch.lgamma)


class Rows(nn.Module):
    def forward(self, h):
        return h - h.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lgamma, r"aten\.lgamma\.default is not in the lowering table"),
        (lambda rank: Rows(), "mixes rows"),
        (lambda rank: Pointwise(lambda h: h.double().sin().float()), "float64"),
        (lambda rank: Pointwise(lambda h: torch.cat([h.sin(), h[..., :0]], -1)), "without channels"),
    ],
)
def test_refused_with_the_reason(act, reason):
    with pytest.raises(KernelError, match=reason):
        generate(make_plan(layer_of([branch_of(act, 12)]), "interpreter"))


# --- activations that nobody wrote ---------------------------------------------------------------------------------

UNARY = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "bell": lambda h: torch.exp(-h * h),
    "soft sign": lambda h: h * torch.rsqrt(1 + h * h),
}


class Drawn(nn.Module):
    """A chain of steps: a unary function, a scale, a shift, a mixer, or a gate."""

    def __init__(self, rank, steps):
        super().__init__()
        self.steps = tuple(steps)
        for at, step in enumerate(steps):
            if step in ("scale", "shift"):
                setattr(self, f"p{at}", nn.Parameter(torch.rand(rank) + 0.5))
            elif step in ("mixer", "gate"):
                setattr(self, f"p{at}", nn.Linear(rank, rank * (2 if step == "gate" else 1), bias=at % 2 == 0))

    def forward(self, h):
        for at, step in enumerate(self.steps):
            held = getattr(self, f"p{at}", None)
            if step == "scale":
                h = h * held
            elif step == "shift":
                h = h + held
            elif step == "mixer":
                h = held(h)
            elif step == "gate":
                gate, value = held(h).chunk(2, dim=-1)
                h = torch.sigmoid(gate) * value
            else:
                h = UNARY[step](h)
        return h


@fuzzed(4, cost=100)
@given(
    steps=st.lists(st.sampled_from([*UNARY, "scale", "shift", "mixer", "gate"]), min_size=1, max_size=6),
    rank=st.integers(1, 80),
    rows=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_chain_of_steps(steps, rank, rows, dtype):
    check(branch_of(lambda rank: Drawn(rank, steps), rank), rows, dtype)


@fuzzed(2, cost=200)
@given(
    steps=st.lists(st.sampled_from([*UNARY, "scale", "shift", "mixer", "gate"]), min_size=2, max_size=5),
    rank=st.integers(129, 256),
    rows=st.integers(1, 40),
)
def test_any_chain_of_steps_in_a_wide_bottleneck(steps, rank, rows):
    check(branch_of(lambda rank: Drawn(rank, steps), rank), rows)

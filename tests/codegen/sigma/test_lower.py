"""σ's graphs as Triton: every row of the tables, activations of one's own, and what is refused with its reason."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from noble_fx.branches.activations import activation_names
from noble_fx.errors import KernelError
from tests.codegen.sigma.sigma_check import branch_of, check, kernels_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path_factory.getbasetemp() / "kernels"))


class Pointwise(nn.Module):
    """One function of h."""

    def __init__(self, function, shift=0.0):
        super().__init__()
        self.function, self.shift = function, shift

    def forward(self, h):
        return self.function(h + self.shift if self.shift else h)


@pytest.mark.parametrize("act", activation_names())
def test_every_activation_of_the_zoo(act):
    check(branch_of(act, rank=12))


# Each is smooth, or its kinks are nowhere near a sampled number.
FUNCTIONS = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": lambda h: torch.log(h * h + 0.5),
    "log2": lambda h: torch.log2(h.abs() + 0.5),
    "log1p": lambda h: torch.log1p(h * h),
    "sqrt": lambda h: torch.sqrt(h * h + 0.1),
    "rsqrt": lambda h: torch.rsqrt(h * h + 0.1),
    "reciprocal": lambda h: torch.reciprocal(h * h + 1),
    "divide": lambda h: h / (1 + h.abs()),
    "erf": torch.erf,
    "erfc": torch.erfc,
    "sigmoid": torch.sigmoid,
    "tan": lambda h: torch.tan(h.tanh()),
    "sinh": lambda h: torch.sinh(h.tanh()),
    "cosh": lambda h: torch.cosh(h.tanh()),
    "cube": lambda h: h**3,
    "inverse square": lambda h: (h * h + 1) ** -2,
    "power 9": lambda h: h.tanh() ** 9,
    "power 1.5": lambda h: (h * h + 0.1) ** 1.5,
    "power 0.5": lambda h: (h * h + 0.1) ** 0.5,
    "power of a number": lambda h: 1.5**h,
    "clamp": lambda h: h.clamp(-0.7, 0.9),
    "clamp below": lambda h: h.clamp(min=-0.3),
    "maximum": lambda h: torch.maximum(h, 0.3 * h),
    "minimum": lambda h: torch.minimum(h.sin(), h.cos()),
    "where": lambda h: torch.where(h > 0.2, h.sin(), h * 0.5),
    "where both": lambda h: torch.where((h > -1) & ~(h >= 1), h * h, h),
    "sign": lambda h: h.sign() * h.abs(),
    "subtract from": lambda h: 1 - 2 * h,
    "scaled add": lambda h: torch.add(h, h.sin(), alpha=0.5),
    "floor": lambda h: h - torch.floor(h.detach()),
    "softmax": lambda h: torch.softmax(h, -1),
    "centred": lambda h: h - h.mean(-1, keepdim=True),
    "largest": lambda h: h - h.amax(-1, keepdim=True).detach(),
    "through bfloat16": lambda h: h.sin() * (h.detach().bfloat16().float() * 0 + 1),
    "two halves": lambda h: torch.cat([h[..., :6].sin(), h[..., 6:].cos()], -1),
    "halves swapped": lambda h: torch.cat(list(h.chunk(2, -1))[::-1], -1),
    "thirds": lambda h: torch.cat([p.sin() * (i + 1) for i, p in enumerate(h.split([3, 4, 5], -1))], -1),
    "one channel to all": lambda h: h * torch.sigmoid(h[..., 2:3]),
    "a constant": lambda h: h * 0 + torch.ones_like(h) * 0.5 + h.sin(),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_the_table_row_by_row(name):
    check(branch_of(lambda rank: Pointwise(FUNCTIONS[name]), rank=12))


@pytest.mark.parametrize(
    "module",
    [nn.Mish, nn.Softplus, nn.ELU, nn.SELU, nn.Softsign, nn.LogSigmoid, nn.PReLU, nn.ReLU6, nn.Hardswish, nn.Hardtanh],
)
def test_activations_of_pytorch(module):
    check(branch_of(lambda rank: module(), rank=12))


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


@pytest.mark.parametrize("rank", [1, 2, 16, 21, 70, 130])
def test_parameters_of_every_shape(rank):
    check(branch_of(Mixture, rank))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 31, 32, 100])
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
    kernels = kernels_of(branch, torch.float32)
    x = torch.randn(40, branch.in_features)
    row = [x, torch.zeros(24, 20), None, branch.down, branch.down_bias, branch.up, *branch.act_tensors()]
    (y,), _ = kernels.forward([None if one is None else one.detach() for one in row], ("kernel",))
    assert y.isnan().all() or not torch.isfinite(y).all()
    with torch.no_grad():
        h = torch.nn.functional.linear(x, branch.down, branch.down_bias)
        truth = branch.act(h) @ branch.up.t()
    assert torch.equal(y.isnan(), truth.isnan())


def lgamma(rank):
    return Pointwise(torch.lgamma)


class Rows(nn.Module):
    def forward(self, h):
        return h - h.mean(0, keepdim=True)


class TwoNamesInOne(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.a = nn.Module()
        self.a.b = nn.Parameter(torch.rand(rank))
        self.a_b = nn.Parameter(torch.rand(rank))

    def forward(self, h):
        return h * self.a.b + self.a_b


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lgamma, r"aten\.lgamma\.default is not in the lowering table"),
        (lambda rank: Rows(), "mixes rows"),
        (lambda rank: Pointwise(lambda h: h[..., ::2].repeat_interleave(2, -1)), "step|not in the lowering table"),
        (lambda rank: Pointwise(lambda h: h.double().sin().float()), "float64"),
        (
            lambda rank: Pointwise(lambda h: h.view(-1, 4, 3).sum(-1).repeat(1, 3)),
            "mixes axes|not in the lowering table",
        ),
        (lambda rank: Pointwise(lambda h: torch.cumsum(h, -1)), "cumsum"),
        (TwoNamesInOne, "two of σ's tensors have one name"),
    ],
)
def test_refused_with_the_reason(act, reason):
    with pytest.raises(KernelError, match=reason):
        kernels_of(branch_of(act, 12), torch.float32)


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


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.sampled_from([*UNARY, "scale", "shift", "mixer", "gate"]), min_size=1, max_size=6),
    rank=st.integers(1, 80),
    rows=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_chain_of_steps(steps, rank, rows, dtype):
    check(branch_of(lambda rank: Drawn(rank, steps), rank), rows, dtype)

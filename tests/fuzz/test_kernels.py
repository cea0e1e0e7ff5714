"""Generated kernels under Triton's interpreter, for whatever σ, sizes, dtypes and layouts are drawn here.

A case is a σ of the zoo or a chain of steps that nobody wrote, one to three layers with such a branch that read one x,
and how they are called. y and every gradient are compared with the formula in float64, which nothing of this package
computes. How far they may be off is measured as well: as far as the formula moves when its numbers are rounded, and σ
is computed in float32.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import event, given, note
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx import NobleLinear, schema
from noble_fx.branches.activations import activation_names
from noble_fx.ops import available, routes
from noble_fx.runtime.layer_kernels import FIRST, KERNEL, VENDOR
from tests.fused_layer import arguments, group_arguments, kernels_on_cpu, take
from tests.fuzz.budget import fuzzed

interpreter = pytest.importorskip("triton.runtime.interpreter")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as conftest.py sets it where there is no GPU
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted here: tests/gpu compiles them")

# --- σ ---------------------------------------------------------------------------------------------------------------

# Where one of them jumps, it is beside the values that others round to (0, 0.5, 1): nothing measures such a jump.
POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "tan": lambda h: torch.tan(torch.tanh(h)),
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda h: F.gelu(h, approximate="tanh"),
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus 2": lambda h: F.softplus(h, beta=2.0, threshold=3.0),
    "elu": F.elu,
    "celu": lambda h: F.celu(h, 0.7),
    "selu": F.selu,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky": lambda h: F.leaky_relu(h, 0.2),
    "hardtanh": lambda h: F.hardtanh(h, -0.5, 0.75),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
    "bell": lambda h: torch.exp(-h * h),
    "exp2": lambda h: torch.exp2(torch.tanh(h)),
    "expm1": lambda h: torch.expm1(torch.tanh(h)),
    "log1p": lambda h: torch.log1p(h * h),
    "log2": lambda h: torch.log2(1.5 + h.square()),
    "log": lambda h: torch.log(h.abs() + 0.5),
    "sinh": lambda h: torch.sinh(torch.tanh(h)),
    "cosh": lambda h: torch.cosh(torch.tanh(h)),
    "rsqrt": lambda h: h * torch.rsqrt(1 + h * h),
    "sqrt": lambda h: torch.sqrt(h * h + 0.1),
    "reciprocal": lambda h: torch.reciprocal(1 + h * h),
    "over": lambda h: 1 / (2 + torch.cos(h)),
    "abs": torch.abs,
    "sign": lambda h: torch.sign(h) * h.square(),
    "floor": lambda h: h - torch.floor(h + 0.37),
    "ceil": lambda h: h * torch.ceil(h - 0.21),
    "trunc": lambda h: h - torch.trunc(h + 0.37),
    "remainder": lambda h: torch.remainder(h + 0.37, 1.5),
    "square": lambda h: torch.tanh(h.square()),
    "cube": lambda h: torch.tanh(h) ** 3,
    "power": lambda h: (h.abs() + 0.1) ** 1.5,
    "inverse square": lambda h: (h.abs() + 0.5) ** -2,
    "base": lambda h: 1.7 ** torch.tanh(h),
    "clamp": lambda h: h.clamp(-0.8, 1.1),
    "clamp min": lambda h: h.clamp(min=-0.2),
    "clamp max": lambda h: torch.clamp_max(h, 0.4),
    "where": lambda h: torch.where(h > 0.1, h * h, -h),
    "mask": lambda h: h * (h > 0),
    "masks": lambda h: h * ((h > -1.1) & ~(h > 0.47) | (h > 1.1)),
    "mask sum": lambda h: h * ((h > 0) + (h < 0.5)),
    "mask float": lambda h: (h <= 0.3).float() + h,
    "masked fill": lambda h: h.masked_fill(h.abs() < 0.2, 0.7),
    "eq": lambda h: torch.where(h == 0.123, 1.0, h),
    "isnan": lambda h: torch.where(torch.isnan(h) | (h != h), 0.0, h),
    "logical": lambda h: h * torch.logical_xor(h > 0, h > 0.47).to(h.dtype),
    "maximum": lambda h: torch.maximum(h, 0.5 - h),
    "minimum": lambda h: torch.minimum(h.sin(), h.cos()),
    "integer": lambda h: h * ((h * 2 + 0.37).clamp(-9, 9).long() * 3 - 1).clamp(min=-2),
    "int32": lambda h: h + (h + 0.37).clamp(-9, 9).to(torch.int32),
    "half": lambda h: h + h.bfloat16().to(h.dtype) * 0.5,
    "lerp": lambda h: torch.lerp(h, h.sin(), 0.3),
    "addcmul": lambda h: torch.addcmul(h, h.cos(), h.sin(), value=0.5),
    "rsub": lambda h: torch.rsub(h, h.sin(), alpha=0.5),
    "add alpha": lambda h: torch.add(h, h.cos(), alpha=2),
    "detach": lambda h: h * h.detach().sin(),
    "polynomial": lambda h: (h.sin() * 2 - 1) * h.cos() + 3 / (1 + h * h),
    "in place": lambda h: h.clone().mul_(2).add_(1).sin_(),
}

ROWWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda h: torch.softmax(h, -1) * 3,
    "layer norm": lambda h: F.layer_norm(h, h.shape[-1:]),
    "mean": lambda h: h - h.mean(-1, keepdim=True),
    "variance": lambda h: h / ((h - h.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + 0.1).sqrt(),
    "set": lambda h: _with_first(h, h[..., -1:].cos()),
    "mean first": lambda h: h.sin() + h.mean(-1).unsqueeze(-1),
    "sum": lambda h: h * torch.tanh(h.sum(-1, keepdim=True)),
    "amax": lambda h: h - h.amax(-1, keepdim=True),
    "amin": lambda h: h.sin() * h.amin(-1, keepdim=True),
    "norm": lambda h: h / (1 + h.square().sum(-1, keepdim=True)).sqrt(),
    "swap": lambda h: torch.cat([h[..., h.shape[-1] // 3 :].sin(), h[..., : h.shape[-1] // 3]], -1),
    "halves": lambda h: torch.cat([piece * (at + 1) for at, piece in enumerate(_halves(h))], -1),
    "first": lambda h: h + h[..., :1].cos(),
    "last": lambda h: h * h[..., -1:].sin(),
    "flip": lambda h: h + h.flip(-1).sin(),
    "cumulative": lambda h: torch.tanh(h.cumsum(-1)),
}  # fmt: skip


def _halves(h: Tensor) -> Sequence[Tensor]:
    return h.split(max(1, h.shape[-1] // 2), -1)


def _with_first(h: Tensor, value: Tensor) -> Tensor:
    h = h.clone()
    h[..., :1] = value
    return h


# Steps that hold tensors: their shapes by the rank, and what is done with them.
HELD: dict[str, tuple[Callable[[int], Sequence[tuple[int, ...]]], Callable[..., Tensor]]] = {
    "scale": (lambda r: [(r,)], lambda h, s: h * s),
    "shift": (lambda r: [(r,)], lambda h, c: h + c),
    "one scale": (lambda r: [(1,)], lambda h, s: h * s),
    "a number": (lambda r: [()], lambda h, s: torch.sin(h * s)),
    "row": (lambda r: [(1, r)], lambda h, s: h - s),
    "over": (lambda r: [(r,)], lambda h, s: h / (1 + s * s)),
    "prelu": (lambda r: [(1,)], F.prelu),
    "mixer": (lambda r: [(r, r)], F.linear),
    "mixer and bias": (lambda r: [(r, r), (r,)], F.linear),
    "the other way": (lambda r: [(r, r)], lambda h, m: h @ m),
    "narrow": (lambda r: [(3, r), (r, 3)], lambda h, m, n: F.linear(torch.tanh(F.linear(h, m)), n)),
    "one channel": (lambda r: [(1, r), (r, 1)], lambda h, m, n: h + F.linear(F.linear(h, m).sin(), n)),
    "wide": (
        lambda r: [(r + 7, r), (r + 7,), (r, r + 7)],
        lambda h, m, c, n: F.linear(torch.cos(F.linear(h, m, c)), n),
    ),
    "gate": (lambda r: [(2 * r, r)], lambda h, m: (lambda a, b: F.silu(a) * b)(*F.linear(h, m).chunk(2, -1))),
    "three": (lambda r: [(3 * r, r)], lambda h, m: (lambda a, b, c: a.sin() * b + c)(*F.linear(h, m).chunk(3, -1))),
    "norm": (lambda r: [(r,), (r,)], lambda h, s, c: F.layer_norm(h, h.shape[-1:], s, c)),
    "twice": (lambda r: [(r, r)], lambda h, m: F.linear(torch.tanh(F.linear(h, m)), m)),
    "unused": (lambda r: [(r,)], lambda h, s: h),
}  # fmt: skip
STEPS = [*POINTWISE, *ROWWISE, *(f"hold {name}" for name in HELD)]


class Chain(nn.Module):
    """σ as a chain of steps; what they hold are parameters, or buffers."""

    def __init__(self, rank: int, steps: Sequence[str], fixed: bool):
        super().__init__()
        self.steps = tuple(steps)
        for at, step in enumerate(steps):
            for index, shape in enumerate(HELD[step[5:]][0](rank) if step.startswith("hold ") else ()):
                tensor = 0.5 * torch.randn(shape) if len(shape) < 2 else torch.randn(shape) * shape[-1] ** -0.5
                if fixed:
                    self.register_buffer(f"t{at}_{index}", tensor)
                else:
                    self.register_parameter(f"t{at}_{index}", nn.Parameter(tensor))

    def forward(self, h: Tensor) -> Tensor:
        for at, step in enumerate(self.steps):
            if step.startswith("hold "):
                shapes, call = HELD[step[5:]]
                h = call(h, *(getattr(self, f"t{at}_{index}") for index in range(len(shapes(h.shape[-1])))))
            else:
                h = (POINTWISE.get(step) or ROWWISE[step])(h)
        return h


RANKS = st.sampled_from([1, 2, 3, 5, 8, 12, 16, 17, 20]) | st.integers(1, 40) | st.sampled_from([64, 65, 100, 130, 150])


@st.composite
def activations(draw: Any) -> tuple[Any, str]:
    """`act=` and what it is."""
    if draw(st.booleans()):
        name = draw(st.sampled_from(activation_names()))
        return name, name
    steps, fixed = draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=4)), draw(st.integers(0, 4)) == 0
    return lambda rank: Chain(rank, steps, fixed), f"{steps}{' of buffers' if fixed else ''}"


# --- layers, and what they are called with ---------------------------------------------------------------------------

ROWS = st.sampled_from([(), (1,), (3,), (31,), (33,), (70,), (0,), (2, 9), (3, 0), (2, 1, 5)])
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])


@st.composite
def layers(draw: Any) -> tuple[list[NobleLinear], str]:
    """Sites of one input whose branches matter, some of their parameters frozen; and what their σ is."""
    (act, name), rank, torch_seed = draw(activations()), draw(RANKS), draw(st.integers(0, 9))
    torch.manual_seed(torch_seed)
    inputs = draw(st.sampled_from([1, 5, 16, 20, 33, 40, 70]))
    outputs = draw(st.lists(st.sampled_from([1, 3, 16, 24, 40, 65]), min_size=1, max_size=3))
    dtype, bias, preset = draw(DTYPES), draw(st.booleans()), draw(st.sampled_from(["paper", "reference"]))
    sites = [NobleLinear.build(inputs, n, rank, bias, act=act, preset=preset) for n in outputs]
    wide_act = draw(st.integers(0, 3)) == 0
    for site in sites:
        with torch.no_grad():
            for parameter in site.noble.parameters():
                if parameter.dim() < 2:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
            site.noble.up.normal_(std=rank**-0.5)
        site.to(dtype)
        if wide_act:
            site.noble.act.float()
    for parameter in [p for site in sites for p in site.parameters()]:
        parameter.requires_grad_(draw(st.integers(0, 3)) > 0)
    return sites, name


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same numbers, or one row of them for all, laid out as named."""
    if how == "every other":
        return torch.stack([tensor, tensor], -1)[..., 0]
    if how == "offset":
        return torch.cat([tensor.new_zeros(*tensor.shape[:-1], 3), tensor], -1)[..., 3:]
    if how == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "expanded" and tensor.dim() > 1:
        return tensor[:1].expand(tensor.shape)
    return tensor


LAYOUTS = st.sampled_from(["plain", "plain", "every other", "offset", "transposed", "expanded"])
VARIANTS = st.sampled_from([None, *product((KERNEL, VENDOR, FIRST), (KERNEL, VENDOR))])

# --- the formula -----------------------------------------------------------------------------------------------------

Numbers = dict[str, Tensor]
# So often are the numbers rounded, and so often where that does not explain an error: what float32 leaves of a gradient
# that is 0 (a norm of one channel) is 0 now and then, and not each time falls what is beside a jump on its other side.
FEW, MANY = 2, 32
FINE, ROUNDED = 2**-21, {torch.float32: 2**-21, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def numbers_of(sites: Sequence[NobleLinear], x: Tensor, dy: Sequence[Tensor], low: torch.dtype) -> Numbers:
    """Everything that the formula takes, in float64; σ's tensors as they are, all others rounded to `low`."""
    held = {"x": x} | {f"{at} dy": tensor for at, tensor in enumerate(dy)}
    for at, site in enumerate(sites):
        state = {**dict(site.named_parameters()), **dict(site.named_buffers())}
        held |= {f"{at} {name}": tensor for name, tensor in state.items()}

    def exact(name: str, tensor: Tensor) -> Tensor:
        return tensor.detach().to(tensor.dtype if ".act." in name else low).double()

    return {name: exact(name, tensor) for name, tensor in held.items()}


def with_h(numbers: Numbers, sites: Sequence[NobleLinear], x: Tensor, low: torch.dtype) -> Numbers:
    """The numbers, and how far from h [.., r] is what `F.linear` makes of it in `low`, as PyTorch's operators call it.

    What follows is σ of that h, as in the modules; and where σ jumps, rounding h is no noise.
    """
    numbers = dict(numbers)
    for at, site in enumerate(sites):
        down, shift = site.noble.down, site.noble.down_bias
        held = [None if tensor is None else tensor.detach().to(low) for tensor in (x, down, shift)]
        exact = F.linear(numbers["x"], numbers[f"{at} noble.down"], numbers.get(f"{at} noble.down_bias"))
        numbers[f"{at} rounding"] = F.linear(*held).double() - exact
    return numbers


def rounded(numbers: Numbers, low: torch.dtype) -> Numbers:
    """As a float32 has them what σ's argument is made of, as `low` has them what is multiplied with its result."""

    def moved(name: str, tensor: Tensor) -> Tensor:
        size = ROUNDED[low] if name.endswith((" dy", " weight", " bias", " noble.up")) else FINE
        return tensor * (1 + size * torch.randn_like(tensor))

    return {name: moved(name, tensor) for name, tensor in numbers.items()}


def formula(
    acts: Sequence[nn.Module], numbers: Numbers, used: Sequence[int], wide: torch.dtype = torch.float64
) -> Numbers:
    """y of each site, and the gradients of everything that the used ones are made of; σ in `wide`."""
    fixed = (" dy", " rounding")
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in numbers.items() if not name.endswith(fixed)}
    results, loss = {}, leaves["x"].new_zeros(())
    for at, act in enumerate(acts):
        own = {name.split()[1]: leaf for name, leaf in leaves.items() if name.startswith(f"{at} ")}
        h = F.linear(leaves["x"], own["noble.down"], own.get("noble.down_bias"))
        h = h + numbers.get(f"{at} rounding", 0)
        state = {name.removeprefix("noble.act."): leaf.to(wide) for name, leaf in own.items() if ".act." in name}
        t = torch.func.functional_call(act, state, (h.to(wide),)).double()
        plain = F.linear(leaves["x"], own["weight"], own.get("bias"))
        y = plain + F.linear(t, own["noble.up"]).reshape(plain.shape)  # a row [1, r] of σ's makes h [r] two axes
        results[f"{at} y"] = y.detach()
        if at in used:
            loss = loss + (y * numbers[f"{at} dy"]).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return results | {
        f"d {name}": gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None
    }


LARGEST = 1e3  # beyond, 16 bits have nothing to say


def compare(found: Numbers, truth: Numbers, move: Callable[[], Numbers], low: torch.dtype) -> str:
    """Each of what was found against the formula; the answer says what the case was worth."""
    moved = [move() for _ in range(FEW)]
    for name, mine in found.items():
        wanted = truth[name]
        assert mine.shape == wanted.shape, name
        finite = wanted.isfinite() & torch.stack([other[name].isfinite() for other in moved]).all(0)
        if not finite.all():
            return "not finite"
        if not wanted.numel():
            assert not mine.numel()
            continue
        size, noise = wanted.abs().max().item(), noise_of(name, truth, moved)
        if size > LARGEST:
            return "too large"
        error = (mine.double() - wanted).abs().max().item()
        while error > 8 * noise + 4 * ROUNDED[low] * size + 1e-6 and len(moved) < MANY:
            moved.append(move())
            noise = noise_of(name, truth, moved)
        assert error <= 8 * noise + 4 * ROUNDED[low] * size + 1e-6, (
            f"{name}: error {error:.3g} of {size:.3g}, {noise:.3g}"
        )
    return "compared"


def noise_of(name: str, truth: Numbers, moved: Sequence[Numbers]) -> float:
    """The farthest that any of these is from the truth."""
    return max((other[name] - truth[name]).abs().max().item() for other in moved)


# --- the kernels -----------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(tmp_path_factory, monkeypatch) -> Iterator[list[str]]:
    """CPU tensors take the CUDA side's code; yields the kernels that were launched."""
    monkeypatch.setattr(interpreter, "_convert_float", rounding_as_a_gpu(interpreter._convert_float))
    with kernels_on_cpu(tmp_path_factory.getbasetemp() / "kernels") as names:
        yield names


def rounding_as_a_gpu(convert: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's casts, but that of float32 to bfloat16: it cuts the digits off, where a GPU rounds them."""

    def converted(number: Any, before: Any, after: Any, rounding: Any) -> Any:
        if (str(before), str(after)) != ("fp32", "bf16"):
            return convert(number, before, after, rounding)
        bits = torch.from_numpy(number.reshape(-1).copy()).bfloat16().view(torch.int16)
        return bits.numpy().view("uint16").reshape(number.shape)

    return converted


def run(
    sites: Sequence[NobleLinear], x: Tensor, dy: Sequence[Tensor], used: Sequence[int], low: torch.dtype
) -> Numbers:
    """y of each site by the operators, and the gradients of what needs one."""
    with torch.autocast("cpu", low, enabled=low != x.dtype):
        if len(sites) > 1:
            y = schema.LINEAR_GROUP(*group_arguments(sites, x))
        else:
            y = [schema.LINEAR(*arguments(sites[0], x))]
    moving = [at for at in used if y[at].requires_grad]
    if moving:
        torch.autograd.backward([y[at] for at in moving], [dy[at] for at in moving])
    found = {f"{at} y": tensor.detach() for at, tensor in enumerate(y)}
    leaves = {"x": x} | {f"{at} {name}": p for at, site in enumerate(sites) for name, p in site.named_parameters()}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            assert leaf.grad.dtype == leaf.dtype
            found[f"d {name}"] = leaf.grad
    return found


@fuzzed(few=6, cost=4)
@given(data=st.data())
def test_kernels(data, launched):
    sites, name = data.draw(layers())
    noble = sites[0].noble
    dtype, shape = sites[0].weight.dtype, data.draw(ROWS)
    low = torch.bfloat16 if dtype is torch.float32 and data.draw(st.integers(0, 4)) == 0 else dtype
    if low != dtype:
        name += ", autocast"
    x = strided(torch.randn(*shape, sites[0].in_features).to(dtype), data.draw(LAYOUTS))
    x.requires_grad_(data.draw(st.booleans()))
    dy = [strided(torch.randn(*shape, s.out_features).to(low), data.draw(LAYOUTS)) for s in sites]
    used = sorted(data.draw(st.sets(st.integers(0, len(sites) - 1), min_size=1)))
    variant = data.draw(VARIANTS)
    note(f"{name}, rank {noble.rank}, {sites}, {noble.act}\nx {x.shape} {x.stride()} {x.dtype}, {used}, {variant}")
    if noble.unfused:
        event(f"eager: {noble.unfused}")
        return
    launched.clear()
    routes.forget()
    with pytest.MonkeyPatch.context() as patch:
        if variant is not None:
            take(patch, variant)
        found = run(sites, x, dy, used, low)
    assert not available._refused
    acts = [copy.deepcopy(site.noble.act).double() for site in sites]
    numbers = numbers_of(sites, x, dy, low)
    if not launched:
        numbers = with_h(numbers, sites, x, low)
    truth = formula(acts, numbers, used)
    leaves = [("x", x), *((f"{at} {n}", p) for at, site in enumerate(sites) for n, p in site.named_parameters())]
    for leaf, tensor in leaves:
        assert (f"d {leaf}" in found) == (tensor.requires_grad and f"d {leaf}" in truth), leaf
    answer = compare(found, truth, lambda: formula(acts, rounded(numbers, low), used, torch.float32), low)
    why = available.why_no_kernel(noble.key, noble.rank, low)
    assert why is None or "please report it" not in why.reason, why
    assert bool(launched) == (why is None and x.numel() > 0), (launched, why)
    event(f"{answer}, {'kernels' if launched else 'no rows' if why is None else 'PyTorch operators'}")
    if why is not None:
        event(f"no kernel: {why.reason[:60]}")

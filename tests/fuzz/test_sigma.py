"""A σ of one's own is what it is, however its Python looks, and follows whatever is changed of it later.

A case is a σ of one to three parts, each of which reads, writes or asks for something, and what is done to them after
`transform`. After each step y, every gradient and what σ keeps for itself are those of the formula in float64, with σ
called as the plain module that it is. Whether a case runs fused or eager is only counted.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import event, given, note
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

import noble_fx
from noble_fx import NobleError
from tests.fuzz.budget import fuzzed
from tests.fuzz.messages import check_message

# --- parts of σ: what they read, and how that may change -------------------------------------------------------------

Change = Callable[[Any], Any]
CHANGES: dict[type[nn.Module], list[Change]] = {}


def part(*changes: Change) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """A class of parts, and what may happen to one of them after `transform`."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        CHANGES[kind] = list(changes)
        return kind

    return register


def sets(name: str, value: Any) -> Change:
    return lambda part: setattr(part, name, value)


@part(sets("gain", 0.3), lambda p: delattr(p, "gain"), sets("gain", 2), sets("gain", torch.tensor(0.7)))
class Number(nn.Module):
    gain = 1.5  # the class has one too

    def __init__(self, rank: int):
        super().__init__()
        self.gain = 0.8

    def forward(self, h: Tensor) -> Tensor:
        return torch.sin(h * self.gain)


@part(sets("mode", "cos"), sets("on", False), sets("mode", "none"))
class Branching(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.mode, self.on = "sin", True

    def forward(self, h: Tensor) -> Tensor:
        h = torch.tanh(h) if self.on else h
        return {"sin": torch.sin, "cos": torch.cos}.get(self.mode, torch.sigmoid)(h)


@part(
    lambda p: p.scales.append(0.2),
    lambda p: p.scales.__setitem__(0, 3.0),
    lambda p: p.table["a"].__setitem__("b", 0.1),
    sets("scales", (1.0,)),
)
class Containers(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.scales, self.table = [1.0, 0.5], {"a": {"b": 0.7}}

    def forward(self, h: Tensor) -> Tensor:
        for scale in self.scales:
            h = torch.sin(h * scale)
        return h + self.table["a"]["b"]


@part(lambda p: setattr(p.settings, "gain", 0.1), lambda p: setattr(p.settings.inner, "shift", 2.0))
class Object(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.settings = types.SimpleNamespace(gain=1.2, inner=types.SimpleNamespace(shift=0.5))

    def forward(self, h: Tensor) -> Tensor:
        return torch.cos(h * self.settings.gain + self.settings.inner.shift)


@part(lambda p: setattr(type(p), "factor", 0.9 * type(p).factor), sets("factor", 0.4))
class OfClass(nn.Module):
    factor = 1.1

    def __init__(self, rank: int):
        super().__init__()

    @property
    def product(self) -> float:
        return self.factor * 2

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(h * self.product)


@part(
    lambda p: p.shift.add_(0.5),
    lambda p: p.mask.logical_not_(),
    lambda p: setattr(p, "shift", torch.full_like(p.shift, 0.3)),
    lambda p: p.register_buffer("shift", torch.full_like(p.shift, -0.3)),
    lambda p: setattr(p, "shift", None),
    sets("order", torch.ones(())),
)
class Buffers(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.register_buffer("shift", torch.linspace(-1, 1, rank))
        self.register_buffer("mask", torch.arange(rank) % 2 == 0, persistent=False)
        self.register_buffer("order", None)

    def forward(self, h: Tensor) -> Tensor:
        h = h if self.shift is None else h + self.shift
        return torch.where(self.mask, h.sin(), h if self.order is None else h * 0.5)


@part(
    lambda p: nn.init.normal_(p.gain),
    lambda p: setattr(p, "gain", nn.Parameter(torch.full_like(p.gain, 0.4))),
    lambda p: p.gain.requires_grad_(False),
    lambda p: setattr(p, "spare", nn.Parameter(torch.ones(()))),
    lambda p: p.gain.data.mul_(0.5),
    lambda p: parametrize.register_parametrization(p, "gain", Halved()),
    lambda p: prune.random_unstructured(p, "gain", 0.5),
    lambda p: setattr(p, "gain", nn.Parameter(torch.full_like(p.gain[:1], 0.4))),
)
class Parameters(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, rank))
        self.register_parameter("spare", None)

    def forward(self, h: Tensor) -> Tensor:
        h = torch.tanh(h * self.gain)
        return h if self.spare is None else h * self.spare


class Halved(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return tensor / 2


@part(
    lambda p: setattr(p.inner[1], "negative_slope", 0.7),
    lambda p: p.inner.__setitem__(1, nn.Tanh()),
    lambda p: p.inner.append(nn.Sigmoid()),
    lambda p: p.inner.__delitem__(1),
    lambda p: p.inner[0].register_forward_hook(lambda module, args, y: y * 2),
    lambda p: p.inner[0].register_full_backward_hook(lambda module, dx, dy: (dx[0] * 2,)),
    lambda p: setattr(p.inner[1], "forward", torch.sin),
    lambda p: parametrize.register_parametrization(p.inner[0], "weight", Halved()),
    lambda p: nn.utils.parametrizations.weight_norm(p.inner[0]),
    lambda p: setattr(p.inner[1], "__class__", nn.ReLU6),
)
class Children(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(rank, rank), nn.LeakyReLU(0.2))

    def forward(self, h: Tensor) -> Tensor:
        return self.inner(h)


@part(lambda p: p.act.reverse(), lambda p: p.act.append(nn.Sigmoid()), lambda p: p.act[0].weight.data.mul_(0.5))
class HiddenModules(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.act = [nn.Linear(rank, rank).double(), nn.Tanh()]

    def forward(self, h: Tensor) -> Tensor:
        dtype = h.dtype
        h = h.double()
        for each in self.act:
            h = each(h)
        return h.to(dtype)


@part(lambda p: p.held[0].mul_(0.5), lambda p: p.held.append(torch.ones(())), sets("held", []))
class HiddenTensors(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.held = [torch.linspace(0.5, 1, rank)]

    def forward(self, h: Tensor) -> Tensor:
        for tensor in self.held:
            h = torch.sin(h * tensor.to(h.dtype))
        return h


@part(
    sets("call", torch.cos),
    sets("call", functools.partial(F.leaky_relu, negative_slope=0.5)),
    sets("call", nn.Sigmoid()),
    lambda p: setattr(p, "helper", lambda h: h + 1),
)
class Functions(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.call: Any = torch.sin

    def helper(self, h: Tensor) -> Tensor:
        return h * 0.9

    def forward(self, h: Tensor) -> Tensor:
        return self.helper(self.call(h))


@part(lambda p: p.train(), lambda p: p.eval())
class Mode(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h.sin() if self.training else h.cos()


@part(lambda p: p.eval(), sets("p", 0.9))
class Noisy(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.p = 0.1

    def forward(self, h: Tensor) -> Tensor:
        return h + self.p * torch.rand(h.shape, dtype=torch.float32).to(h) if self.training else h


@part(sets("calls", 7))
class Counts(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.calls = 0

    def forward(self, h: Tensor) -> Tensor:
        self.calls += 1
        return torch.sin(h * self.calls)


@part(lambda p: p.calls.zero_())
class CountsInABuffer(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.register_buffer("calls", torch.ones(()))

    def forward(self, h: Tensor) -> Tensor:
        self.calls += 1
        return torch.sin(h / self.calls)


@part(lambda p: p.seen.clear())
class Remembers(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, h: Tensor) -> Tensor:
        self.seen.append(tuple(h.shape))
        return torch.sin(h) * min(len(self.seen), 3)


@part()
class MixesRows(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h - 0.5 * h.mean(-2, keepdim=True) if h.dim() > 1 else h


@part()
class AsksForAxes(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h.sin() if h.dim() == 2 else h.cos()


@part(sets("limit", 2))
class AsksForRows(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.limit = 100

    def forward(self, h: Tensor) -> Tensor:
        return h.sin() if h.numel() < self.limit else h.cos()


@part()
class AsksForGradients(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h.sin() if torch.is_grad_enabled() else h.cos()


@part()
class AsksForValues(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h.sin() if h.sum() > 0.3 else h.cos()  # a norm before it gives 0, but for rounding


@part(lambda p: nn.init.normal_(p.gain))
class AsksForItsValues(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, h: Tensor) -> Tensor:
        return h.sin() if self.gain > 0.5 else h.cos()


@part()
class InPlace(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        h = h * 2
        h[..., :1] = 0.5
        h[..., -1].mul_(0.3)
        return h.sin_()


@part()
class OfItsInput(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h.mul_(2)


@part()
class Same(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h


@part()
class Detaches(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h.detach() * h.sin() + h.data.cos()


@part()
class WithoutGradient(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            scale = h.abs().amax(-1, keepdim=True) + 1
        return h / scale


class Doubled(torch.autograd.Function):
    """With a derivative that is not its own."""

    @staticmethod
    def forward(context: Any, h: Tensor) -> Tensor:
        return h.sin()

    @staticmethod
    def backward(context: Any, dt: Tensor) -> Tensor:
        return 2 * dt


@part()
class OwnDerivative(nn.Module):
    def __init__(self, rank: int):
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return Doubled.apply(h)


@part(sets("value", 0.1))
class FreshTensors(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.value, self.rank = 1.3, rank

    def forward(self, h: Tensor) -> Tensor:
        return h.sin() * torch.tensor(self.value, dtype=h.dtype) + torch.arange(self.rank) / self.rank


@part(lambda p: object.__setattr__(p, "power", 1))
class Slots(nn.Module):
    __slots__ = ("power",)

    def __init__(self, rank: int):
        super().__init__()
        self.power = 2

    def __getstate__(self) -> Any:
        return {**vars(self), "power": self.power}

    def __setstate__(self, state: Any) -> None:
        self.power = state.pop("power")
        super().__setstate__(state)

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(h) ** self.power


@part(lambda p: p.store.update(gain=0.2))
class Fallback(nn.Module):
    """What it lacks it looks up."""

    def __init__(self, rank: int):
        super().__init__()
        self.store = {"gain": 1.4}

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get("store", {})
        return held[name] if name in held else super().__getattr__(name)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cos(h * self.gain)


@part(lambda p: nn.init.normal_(p.weight), lambda p: setattr(p, "twin", nn.Parameter(p.weight.detach() * 0.5)))
class Tied(nn.Module):
    def __init__(self, rank: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rank, rank) * rank**-0.5)
        self.twin = self.weight

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(h, self.weight)), self.twin)


@part(sets("eps", 0.5), lambda p: nn.init.normal_(p.weight))
class Norm(nn.LayerNorm):
    pass


WHOLE: list[Change] = [  # of σ itself, whatever its parts are
    lambda act: act.register_forward_hook(lambda module, args, y: y * 3),
    lambda act: act.register_forward_pre_hook(lambda module, args: (args[0] * 3,)),
    lambda act: act.train(),
    lambda act: act.eval(),
    lambda act: setattr(act, "forward", torch.sin),
    lambda act: setattr(act, "__class__", Reversed),
    lambda act: act.add_module("late", nn.Tanh()),
    lambda act: act.requires_grad_(False),
    lambda act: act.load_state_dict({name: tensor * 0.5 for name, tensor in act.state_dict().items()}),
]


class Chain(nn.Module):
    def __init__(self, rank: int, kinds: Any):
        super().__init__()
        for at, kind in enumerate(kinds):
            self.add_module(f"part{at}", kind(rank))

    def forward(self, h: Tensor) -> Tensor:
        for each in self.children():
            h = each(h)
        return h


class Reversed(Chain):
    def forward(self, h: Tensor) -> Tensor:
        for each in reversed(list(self.children())):
            h = each(h)
        return h


# --- what is compared ------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def found_of(model: nn.Module, x: Tensor, grad: bool) -> Any:
    """y, the gradients of x, W, b, D, d, U and σ's, and what σ's modules hold afterwards; or an error's class."""
    noble = model.layer.noble
    return _outcome(model, x, [*_leaves(model, noble), *noble.act.parameters()], noble.act, grad)


def formula_of(model: nn.Module, x: Tensor, grad: bool) -> Any:
    """The same by hand, in float64, of a copy."""
    own = copied(model)
    if own is model:
        return None
    own.double()
    noble, x = own.layer.noble, x.detach().double().requires_grad_(x.requires_grad)
    weight, bias, down, *d, up = _leaves(own, noble)

    def formula(x: Tensor) -> Tensor:
        h = F.linear(x, down, d[0] if d else None)
        return F.linear(x, weight, bias) + F.linear(noble.act(h), up)

    return _outcome(formula, x, [weight, bias, down, *d, up, *noble.act.parameters()], noble.act, grad)


def _leaves(model: Any, noble: Any) -> list[Any]:
    layer = model.layer
    return [
        layer.weight,
        layer.bias,
        noble.down,
        *([] if noble.down_bias is None else [noble.down_bias]),
        noble.up,
    ]


def _outcome(call: Any, x: Tensor, leaves: list[Any], act: nn.Module, grad: bool) -> Any:
    torch.manual_seed(0)
    try:
        with torch.set_grad_enabled(grad):
            y = call(x)
        results = [y.detach()]
        wanted = [leaf for leaf in [x, *leaves] if leaf.requires_grad]
        if y.requires_grad:
            loss = (y * torch.arange(1, y.numel() + 1).view_as(y).to(y.dtype).cos()).sum()
            results += torch.autograd.grad(loss, wanted, allow_unused=True)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        return type(error)
    return results, [state_of(part) for part in act.modules()]


def state_of(part: nn.Module) -> Any:
    kept = {name: getattr(part, name) for name in ("calls", "seen") if hasattr(part, name)}
    return {name: value.item() if isinstance(value, Tensor) else copy.copy(value) for name, value in kept.items()}


TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}


def agree(found: Any, wanted: Any) -> None:
    if isinstance(found, type) or isinstance(wanted, type):
        assert found is wanted, (found, wanted)
        return
    assert found[1] == wanted[1]
    for mine, other in zip(found[0], wanted[0], strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other.numel():
            size = max(1.0, other.abs().max().item())
            torch.testing.assert_close(
                mine.double(), other, rtol=TOLERANCE[mine.dtype], atol=TOLERANCE[mine.dtype] * size, equal_nan=True
            )


def copied(model: nn.Module) -> nn.Module:
    """A copy; or the model itself, where what older hooks made cannot be copied."""
    try:
        return copy.deepcopy(model)
    except RuntimeError:
        return model


def inputs(draw: Any, dtype: torch.dtype) -> Tensor:
    shape = draw(st.sampled_from([(3,), (1,), (), (2, 3), (0,), (2, 1, 2), (40,)]))
    return torch.randn(*shape, 5).to(dtype).requires_grad_(draw(st.booleans()))


def change(draw: Any, act: nn.Module) -> str:
    """Something happens to σ or to a part of it; says what."""
    parts = [each for each in act.children() if type(each) in CHANGES]
    choices = [(each, at) for each in parts for at in range(len(CHANGES[type(each)]))] + [
        (None, at) for at in range(len(WHOLE))
    ]
    each, at = draw(st.sampled_from(choices))
    with torch.no_grad():
        if each is None:
            WHOLE[at](act)
            return f"σ, {at}"
        try:
            CHANGES[type(each)][at](each)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return "a change that is none any more"
        return f"{type(each).__name__}, {at}"


@fuzzed(few=10, cost=2)
@given(data=st.data())
def test_sigma(data):
    draw = data.draw
    kinds = draw(st.lists(st.sampled_from(list(CHANGES)), min_size=1, max_size=3))
    dtype, rank = draw(st.sampled_from([torch.float32, torch.float32, torch.float64])), draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 5)))
    model, factor = Model(5, 4).to(dtype), OfClass.factor
    note(f"{[kind.__name__ for kind in kinds]}, rank {rank}, {dtype}")
    try:
        model = noble_fx.transform(
            model,
            rank=rank,
            act=lambda rank: Chain(rank, kinds),
            select="all",
            preset=draw(st.sampled_from(["paper", "reference"])),
            seed=0,
        )
    except NobleError as error:
        event(f"refused: {error}"[:90])
        check_message(error)
        return
    try:
        nn.init.normal_(model.layer.noble.up)
        model.train(draw(st.booleans()))
        event(f"eager: {model.layer.noble.unfused[:50]}" if model.layer.noble.unfused else "fused")
        for _ in range(draw(st.integers(1, 4))):
            x, grad = inputs(draw, dtype), draw(st.integers(0, 3)) > 0
            wanted = formula_of(model, x, grad)
            if wanted is None:  # prune, once gradients were computed through its mask
                event("cannot be copied")
                return
            note(f"x {list(x.shape)}, grad {grad} {x.requires_grad}")
            agree(found_of(model, x, grad), wanted)
            if isinstance(wanted, type):
                event(f"both raise {wanted.__name__}")
            what = draw(st.sampled_from(["change", "change", "change", "copy", "again"]))
            if what == "copy":
                model = copied(model)
            note(change(draw, model.layer.noble.act) if what == "change" else what)
    finally:
        OfClass.factor = factor

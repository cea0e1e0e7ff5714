"""A layer with its operator does whatever the layer and its branch do as modules, in any circumstances drawn here.

Each case is a layer, an input and what a program does around and after the call. The same program runs on the same
layer with its branch eager: results, gradients and which of them are None must agree, and so must a refusal.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import event, given, note
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import noble_fx
from tests.fuzz.budget import fuzzed

# --- what is called -------------------------------------------------------------------------------------------------

ACTS = ("cosnet", "cosnet_double", "cos", "gelu", "gelu_net", "swiglu", "identity", "relu", "tanh")
K = 6


class Sites(nn.Module):
    """One layer, or three that read the same x; their classes drawn."""

    def __init__(self, kind: str, out_features: int, bias: bool):
        super().__init__()
        self.kind = kind
        if kind == "conv":
            self.layer: nn.Module = nn.Conv1d(K, out_features, 1, bias=bias)
        elif kind == "three":
            self.layer = nn.Linear(K, out_features, bias=bias)
            self.key, self.value = nn.Linear(K, 5, bias=bias), nn.Linear(K, 5)
        else:
            self.layer = nn.Linear(K, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "conv":
            return self.layer(x.transpose(-1, -2)).transpose(-1, -2)
        if self.kind == "three":
            return torch.cat([self.layer(x), self.key(x) * self.value(x)], -1)
        return self.layer(x)


@st.composite
def layers(draw: Any) -> nn.Module:
    """Layers with branches that matter, some of their parameters frozen."""
    kind, dtype = draw(st.sampled_from(["linear", "linear", "three", "conv"])), draw(DTYPES)
    torch.manual_seed(draw(st.integers(0, 5)))
    model = Sites(kind, draw(st.integers(3, 9)), draw(st.booleans())).to(dtype)
    settings = {"rank": draw(st.integers(1, 2)), "act": draw(st.sampled_from(ACTS)), "select": "all", "seed": 0}
    model = noble_fx.transform(model, preset=draw(st.sampled_from(["paper", "reference"])), **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("up"):
                parameter.normal_()
    parameters = list(model.parameters())
    for index in draw(st.sets(st.integers(0, len(parameters) - 1))):
        parameters[index].requires_grad_(False)
    return model.train(draw(st.booleans()))


DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16])
ROWS = st.sampled_from([(), (1,), (3,), (0,), (2, 3), (2, 0), (1, 2, 2)])


@st.composite
def inputs(draw: Any, model: nn.Module) -> Tensor:
    """x [.., K]: any number of rows and any strides, a leaf, part of a graph, or neither."""
    shape = draw(ROWS)
    if model.kind == "conv":
        shape = (*(shape or (2,))[-2:],) if len(shape or (2,)) > 1 else (2, *(shape or (2,)))
    dtype = next(model.parameters()).dtype
    x = torch.randn(*shape, K, dtype=torch.float64).to(dtype)
    how = draw(st.sampled_from(["plain", "strided", "offset", "expanded"]))
    if how == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    elif how == "offset":
        x = torch.cat([x.new_zeros(*shape, 3), x], -1)[..., 3:]
    elif how == "expanded" and shape:
        x = x[:1].expand(*shape, K)
    return x.requires_grad_() if draw(st.booleans()) else x


# --- what is done around the call: (model, x) -> tensors ------------------------------------------------------------

Program = Callable[[nn.Module, Tensor], Any]


def _called(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def _keyword(model: nn.Module, x: Tensor) -> Any:
    return model(x=x)


def _twice(model: nn.Module, x: Tensor) -> Any:
    return model(x) + 2 * model(x * 0.5)


def _checkpointed(model: nn.Module, x: Tensor) -> Any:
    return checkpoint(model, x, use_reentrant=False)


def _autocast(model: nn.Module, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


def _without_grad(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)


def _inference(model: nn.Module, x: Tensor) -> Any:
    with torch.inference_mode():
        return model(x).clone()


def _copied(model: nn.Module, x: Tensor) -> Any:
    return copy.deepcopy(model)(x) + model(x)


def _disabled(model: nn.Module, x: Tensor) -> Any:
    with noble_fx.disabled(model):
        y = model(x)
    return y + model(x)


def _mapped(model: nn.Module, x: Tensor) -> Any:
    return torch.vmap(model)(torch.stack([x, 2 * x]))


def _mapped_gradients(model: nn.Module, x: Tensor) -> Any:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(own: Any, row: Tensor) -> Tensor:
        return torch.func.functional_call(model, own, (row,)).square().sum()

    gradients = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.stack([x.detach(), 2 * x.detach()]))
    return tuple(gradients.values())


def _functional(model: nn.Module, x: Tensor) -> Any:
    return torch.func.functional_call(model, {name: 2 * p for name, p in model.named_parameters()}, (x,))


def _tangent(model: nn.Module, x: Tensor) -> Any:
    with forward_ad.dual_level():
        y = model(forward_ad.make_dual(x.detach(), torch.ones_like(x)))
        return tuple(forward_ad.unpack_dual(y))


def _twice_differentiated(model: nn.Module, x: Tensor) -> Any:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return gradient


def _hooked(model: nn.Module, x: Tensor) -> Any:
    branch = next(m for m in model.modules() if isinstance(m, noble_fx.Branch))
    handle = branch.register_forward_hook(lambda module, args, y: 3 * y)
    try:
        return model(x)
    finally:
        handle.remove()


def _cast(model: nn.Module, x: Tensor) -> Any:
    model = copy.deepcopy(model).to(torch.float64)
    return model(x.double())


def _stepped(model: nn.Module, x: Tensor) -> Any:
    own = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad] or [x.clone()], 0.01)
    own(x.detach()).square().sum().backward()
    optimizer.step()
    return own(x)


PROGRAMS: list[Program] = [
    _called, _called, _keyword, _twice, _checkpointed, _autocast, _without_grad, _inference, _copied, _disabled,
    _mapped, _mapped_gradients, _functional, _tangent, _twice_differentiated, _hooked, _cast, _stepped,
]  # fmt: skip


# --- what is done with a result ------------------------------------------------------------------------------------


def _left(y: Tensor) -> Tensor:
    return y


def _relu(y: Tensor) -> Tensor:
    return torch.relu_(y)


def _scaled(y: Tensor) -> Tensor:
    y *= 2
    return y


def _view_changed(y: Tensor) -> Tensor:
    y.view(-1)[:2].add_(1)
    return y


def _halves_changed(y: Tensor) -> Tensor:
    first, second = y.split([1, y.shape[-1] - 1], -1)
    first += second.mean()
    return y


def _filled(y: Tensor) -> Tensor:
    return y.masked_fill_(y > 0, 0.5)


def _reshaped(y: Tensor) -> Tensor:
    y.unsqueeze_(0)
    return y.mul_(y.detach())


AFTER = [_left, _left, _relu, _scaled, _view_changed, _halves_changed, _filled, _reshaped]


# --- the comparison -------------------------------------------------------------------------------------------------


def outcome(model: nn.Module, x: Tensor, program: Program, after: Callable[[Tensor], Tensor]) -> Any:
    """Results and gradients, or the class of the error."""
    for tensor in [x, *model.parameters()]:
        tensor.grad = None
    torch.manual_seed(0)
    try:
        y = program(model, x)
        y = after(y) if isinstance(y, Tensor) else y
        tensors = [t for t in (y if isinstance(y, tuple) else (y,)) if t is not None]
        moving = [t for t in tensors if t.requires_grad]
        if moving:
            sum((t.double() * torch.arange(1, t.numel() + 1).view_as(t)).sum() for t in moving).backward()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return type(error)
    gradients = [x.grad, *(p.grad for p in model.parameters())]
    return [*(t.detach().clone() for t in tensors), *(None if g is None else g.clone() for g in gradients)]


@contextlib.contextmanager
def eager_branches(model: nn.Module) -> Any:
    """Inside, every branch runs as the module that it is."""
    branches = [m for m in model.modules() if isinstance(m, noble_fx.Branch)]
    before = [branch.unfused for branch in branches]
    for branch in branches:
        branch.unfused = "eager"
    try:
        yield
    finally:
        for branch, reason in zip(branches, before, strict=True):
            branch.unfused = reason


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2}


def agree(fused: Any, eager: Any, loosest: float, moved: Callable[[], list[Any]]) -> None:
    """Equal up to rounding; where more is between them, up to what rounding the model's numbers does to them (`moved`).

    A difference of two large terms in bfloat16, and what is chosen by its sign, are nothing that a tolerance knows.
    """
    if isinstance(eager, type) or isinstance(fused, type):
        assert fused is eager, (fused, eager)
        return
    for at, (mine, other) in enumerate(zip(fused, eager, strict=True)):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == other.dtype
            assert mine.shape == other.shape
            size = max(1.0, other.double().abs().max().item()) if other.numel() else 1.0
            tolerance = max(loosest, TOLERANCE[mine.dtype])
            if torch.allclose(mine.double(), other.double(), rtol=tolerance, atol=tolerance * size):
                continue
            spread = max((each[at].double() - other.double()).abs().max().item() for each in moved())
            torch.testing.assert_close(
                mine.double(), other.double(), rtol=tolerance, atol=tolerance * size + 3 * spread
            )


def rounded(model: nn.Module, x: Tensor, program: Program, after: Callable[[Tensor], Tensor], low: bool) -> list[Any]:
    """The results of the eager model for eight other roundings of its parameters."""
    results = []
    for seed in range(8):
        own = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in own.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.mul_(1 + noise * (2**-8 if low else torch.finfo(x.dtype).eps))
        with eager_branches(own):
            results.append(outcome(own, x, program, after))
    return results


@fuzzed(few=40)
@given(data=st.data(), model=layers(), program=st.sampled_from(PROGRAMS), after=st.sampled_from(AFTER))
def test_the_operator_is_the_modules(data, model, program, after):
    x = data.draw(inputs(model), "x")
    note((model, program.__name__, after.__name__))
    with eager_branches(model):
        eager = outcome(model, x, program, after)
    fused = outcome(model, x, program, after)
    event(f"refused by both: {eager.__name__}" if isinstance(eager, type) else "compared")
    low = program is _autocast or x.dtype is torch.bfloat16
    agree(fused, eager, TOLERANCE[torch.bfloat16] if low else 0.0, lambda: rounded(model, x, program, after, low))

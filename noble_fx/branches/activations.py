"""The σ zoo: every activation of the paper's study by name, and the way to add one's own.

An activation is any `nn.Module` that maps `[.., r] -> [.., r]` one row at a time. Those of the zoo are chains of five
parts, each of which knows how to draw its own parameters:

    Cosine      cos(ω ⊙ h + φ)                ω, φ [r]
    Mixer       h Mᵀ + m                      M [r', r], m [r'] or none
    ScaleShift  s ⊙ h + c                     s, c [r], either may be absent
    Gate        silu(a) ⊙ b for h = [a; b]    [.., 2r] -> [.., r]
    Signed      -f(h), or -f(-h)

CosNet, the best σ of the paper, is Cosine → Mixer → Cosine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from noble_fx.branches.drawing import has_values
from noble_fx.config import NoblePreset
from noble_fx.errors import ConfigError, nearest, printable, shown
from noble_fx.torch_state import autocast_is_on, without_autocast

Factory = Callable[[int], nn.Module]


class Cosine(nn.Module):
    """cos(ω ⊙ h + φ), [.., r] -> [.., r]; ω ~ U(frequency_range), φ ~ N(0, phase_std)."""

    roles = {"frequency": "frequency", "phase": "phase"}

    def __init__(self, rank: int, preset: NoblePreset) -> None:
        super().__init__()
        self.frequency_range, self.phase_std = preset.frequency_range, preset.phase_std
        self.frequency = nn.Parameter(torch.empty(rank))
        self.phase = nn.Parameter(torch.empty(rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if has_values(self.frequency):
            nn.init.uniform_(self.frequency, *self.frequency_range)
            nn.init.normal_(self.phase, std=self.phase_std)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cos(self.frequency * h + self.phase)


class Mixer(nn.Module):
    """h Mᵀ + m, [.., r] -> [.., r']. Not an nn.Linear, so that no tool mistakes it for one of the model's own."""

    roles = {"weight": "mixer"}

    def __init__(self, rank: int, preset: NoblePreset, outputs: int | None = None, gain: float | None = None) -> None:
        super().__init__()
        self.init, self.gain = preset.mixer_init, preset.mixer_gain if gain is None else gain
        self.weight = nn.Parameter(torch.empty(outputs or rank, rank))
        self.bias = nn.Parameter(torch.empty(outputs or rank)) if preset.mixer_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if not has_values(self.weight):
            return
        rank = self.weight.shape[1]
        if self.init == "xavier_uniform":
            nn.init.xavier_uniform_(self.weight)
        else:
            nn.init.normal_(self.weight, std=self.gain * rank**-0.5)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(rank**-0.5), rank**-0.5)

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight, self.bias)


class ScaleShift(nn.Module):
    """s ⊙ h + c, [.., r] -> [.., r]; starts as the identity."""

    roles = {"scale": "scale", "shift": "shift"}

    def __init__(self, rank: int, scale: bool = True, shift: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(rank)) if scale else None
        self.shift = nn.Parameter(torch.empty(rank)) if shift else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.scale is not None:
            nn.init.ones_(self.scale)
        if self.shift is not None:
            nn.init.zeros_(self.shift)

    def forward(self, h: Tensor) -> Tensor:
        h = h if self.scale is None else h * self.scale
        return h if self.shift is None else h + self.shift


class Gate(nn.Module):
    """silu(a) ⊙ b for h = [a; b], [.., 2r] -> [.., r]."""

    def forward(self, h: Tensor) -> Tensor:
        gate, value = h.chunk(2, dim=-1)
        return F.silu(gate) * value


class Signed(nn.Module):
    """-f(h), or with `flip` -f(-h); [.., r] -> [.., r]."""

    def __init__(self, inner: nn.Module, flip: bool) -> None:
        super().__init__()
        self.inner, self.flip = inner, flip

    def forward(self, h: Tensor) -> Tensor:
        return -self.inner(-h if self.flip else h)


def _chain(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def _net(rank: int, preset: NoblePreset, act: Callable[[], nn.Module]) -> nn.Module:
    return _chain(first=act(), mixer=Mixer(rank, preset), second=act())


def _cosnet_double(rank: int, preset: NoblePreset) -> nn.Module:
    # The author's code draws these two mixers with N(0, 1/√r), twice the gain of CosNet's.
    def cosine() -> Cosine:
        return Cosine(rank, preset)

    def mixer() -> Mixer:
        return Mixer(rank, preset, gain=2 * preset.mixer_gain)

    return _chain(first=cosine(), mixer1=mixer(), second=cosine(), mixer2=mixer(), third=cosine())


def _swiglu(rank: int, preset: NoblePreset) -> nn.Module:
    return _chain(mixer=Mixer(rank, preset, outputs=2 * rank), gate=Gate())


_POINTWISE: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}

_Builder = Callable[[int, NoblePreset], nn.Module]


def _plain(name: str) -> _Builder:
    return lambda rank, preset: _POINTWISE[name]()


def _netted(name: str) -> _Builder:
    return lambda rank, preset: _net(rank, preset, _POINTWISE[name])


def _scaled(name: str, scale: bool = True) -> _Builder:
    return lambda rank, preset: _chain(act=_POINTWISE[name](), affine=ScaleShift(rank, scale=scale))


def _signed(name: str, flip: bool) -> _Builder:
    return lambda rank, preset: Signed(_POINTWISE[name](), flip)


_ZOO: dict[str, _Builder] = {
    "cosnet": lambda r, p: _net(r, p, lambda: Cosine(r, p)),
    "cosnet_double": _cosnet_double,
    "cos": Cosine,
    "identity": lambda r, p: nn.Identity(),
    **{name: _plain(name) for name in _POINTWISE},
    **{f"{name}_net": _netted(name) for name in ("gelu", "silu", "tanh", "leaky_relu")},
    **{f"{name}_scale": _scaled(name) for name in ("gelu", "silu", "tanh", "leaky_relu")},
    "silu_shift": _scaled("silu", scale=False),
    **{f"neg_{name}": _signed(name, flip=False) for name in ("silu", "gelu")},
    **{f"flip_{name}": _signed(name, flip=True) for name in ("silu", "gelu")},
    "swiglu": _swiglu,
    "swiglu_net": lambda r, p: _net(r, p, lambda: _swiglu(r, p)),
}

# The author's spelling of the same names.
_ALIASES = {"none": "identity", "cos_net": "cosnet", "cos_net_double": "cosnet_double"} | {
    f"leakyrelu{suffix}": f"leaky_relu{suffix}" for suffix in ("", "_net", "_scale")
}
_USER: dict[str, Factory] = {}


def activation_names() -> tuple[str, ...]:
    """Every name that `act=` takes, registered ones last."""
    return (*_ZOO, *_USER)


def register_activation(name: str, factory: Factory) -> None:
    """Make `act=name` build `factory(rank)`; a second call replaces the first."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"{shown(name)} is not a name for an activation; use letters, digits and underscores")
    if name in _ZOO or name in _ALIASES:
        raise ConfigError(f"{name!r} is already an activation of noble_fx; choose another name")
    if not callable(factory):
        raise ConfigError(f"the factory of {name!r} must be a callable(rank) -> nn.Module, not {shown(factory)}")
    _USER[name] = factory


def build_activation(act: str | Factory, rank: int, preset: NoblePreset) -> nn.Module:
    """σ for one branch, `[.., r] -> [.., r]`; raises `ConfigError` for an unknown name or a wrong shape."""
    if isinstance(act, str):
        act = _ALIASES.get(act, act)
        if act in _ZOO:
            return _ZOO[act](rank, preset)
        if act not in _USER:
            known = activation_names()
            raise ConfigError(f"act={act!r} is unknown{nearest(act, known)}; known: {', '.join(known)}")
    factory = _USER[act] if isinstance(act, str) else act
    name = activation_label(act)
    try:
        module = factory(rank)
    except Exception as error:
        raise ConfigError(
            f"act {name} fails for rank {rank}: {type(error).__name__}: {printable(error)}; it must be a name or a "
            "callable(rank) -> nn.Module"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"act {name} gave {type(module).__name__} for rank {rank}; it must give an nn.Module")
    _check_shape(module, name, rank)
    return module


def activation_label(act: str | Factory) -> str:
    """The name to show: canonical for the zoo, the qualified name for a callable."""
    if isinstance(act, str):
        return _ALIASES.get(act, act)
    return getattr(act, "__qualname__", type(act).__qualname__)


def is_identity(act: str | Factory) -> bool:
    """True for the linear branch, which has no bias of D in any recipe."""
    return isinstance(act, str) and activation_label(act) == "identity"


def _check_shape(module: nn.Module, name: str, rank: int) -> None:
    reference = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0))
    h = torch.zeros(3, rank, dtype=reference.dtype, device=reference.device)
    try:
        with torch.no_grad():
            shape = tuple(module(h).shape)
    except Exception as error:
        if h.is_meta:  # it may decide on values, and there are none; where there are, it is asked again
            return
        raise ConfigError(f"act {name} fails on an input [3, {rank}]: {error}") from error
    if shape != (3, rank):
        raise ConfigError(f"act {name} maps [3, {rank}] to {list(shape)}; it must keep the shape [.., rank]")


def evaluate(act: nn.Module, h: Tensor) -> Tensor:
    """σ(h) in float32 or better, [.., r] -> [.., r] in the dtype of `h`.

    Rounding the argument of a cosine to bfloat16 costs up to 0.1 of the result, so the whole of σ, mixers included,
    is computed in float32 under bfloat16, float16 and autocast alike. The parameters keep their storage dtype.
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    if autocast_is_on(h.device.type):
        with without_autocast(h.device.type):
            return evaluate(act, h)
    state = {**dict(act.named_parameters()), **dict(act.named_buffers())}
    if all(tensor.dtype == wide for tensor in state.values() if tensor.is_floating_point()):
        return act(h.to(wide)).to(h.dtype)
    state = {name: tensor.to(wide) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return functional_call(act, state, (h.to(wide),)).to(h.dtype)

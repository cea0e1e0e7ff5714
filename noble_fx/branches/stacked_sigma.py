"""σ of many branches at once, each row by its own branch's: a few operators, however many branches there are.

    cos(ω_e ⊙ h + φ_e)        ω [E, r] of the experts, then of each row, then one cosine over all of h [S, r]

σ is taken apart into the parts of the zoo, by their exact classes; of anything else nobody knows this, and each branch
runs as the module that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.branches.activations import Cosine, Gate, Mixer, ScaleShift, Signed
from noble_fx.branches.folded import Cos
from noble_fx.branches.grouped import Groups
from noble_fx.torch_state import PLAIN_TENSORS, autocast_is_on, without_autocast

# Parts without tensors, and the settings that they must have in common.
_POINTWISE: dict[type, tuple[str, ...]] = {
    nn.Identity: (), nn.ReLU: ("inplace",), nn.LeakyReLU: ("negative_slope", "inplace"), nn.GELU: ("approximate",),
    nn.SiLU: ("inplace",), nn.Tanh: (), Gate: (), Cos: (),
}  # fmt: skip
_TENSORS: dict[type, tuple[str, ...]] = {
    Cosine: ("frequency", "phase"), ScaleShift: ("scale", "shift"), Mixer: ("weight", "bias"),
    nn.Linear: ("weight", "bias"),
}  # fmt: skip


def alike(acts: Sequence[Any]) -> bool:
    """Whether these σ are the same chain of known parts, as plain modules that nobody hooked or parametrized."""
    first, kind = acts[0], type(acts[0])
    if any(type(act) is not kind or is_changed(act) for act in acts):
        return False
    if kind is nn.Sequential:
        chains = [act._modules.values() for act in acts]  # `children` takes its time to look for doubles
        return len({len(chain) for chain in chains}) == 1 and all(map(alike, zip(*chains, strict=True)))
    if kind is Signed:
        return all(act.flip == first.flip for act in acts) and alike([act._modules["inner"] for act in acts])
    if kind in _TENSORS:
        return all(same_tensors(acts, name) for name in _TENSORS[kind])
    settings = _POINTWISE.get(kind)
    return settings is not None and all(getattr(a, n) == getattr(first, n) for n in settings for a in acts)


def is_changed(module: nn.Module) -> bool:
    """Whether something was hung on this module that a call of its parts would pass by."""
    own = vars(module)  # the modules of every expert are asked in every call, so that it should be quick
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def same_tensors(modules: Sequence[nn.Module], name: str) -> bool:
    """Whether all have a plain parameter of that name and one shape, or none has one."""
    tensors = [module._parameters.get(name) for module in modules]
    if tensors[0] is None and all(tensor is None for tensor in tensors):
        return all(vars(module).get(name) is None for module in modules)
    shape = None if tensors[0] is None else tensors[0].shape
    return all(type(tensor) in PLAIN_TENSORS and tensor.shape == shape for tensor in tensors)  # type: ignore[union-attr]


def evaluate_all(acts: Sequence[nn.Module], h: Tensor, groups: Groups) -> Tensor:
    """Each row's own σ of it, [.., r] -> [.., r], in float32 or better as `activations.evaluate` has it."""
    wide = torch.promote_types(h.dtype, torch.float32)
    if autocast_is_on(h.device.type):
        with without_autocast(h.device.type):
            return _run(acts, h.to(wide), groups).to(h.dtype)
    return _run(acts, h.to(wide), groups).to(h.dtype)


def _run(acts: Sequence[Any], h: Tensor, groups: Groups) -> Tensor:
    first, kind = acts[0], type(acts[0])
    if kind is nn.Sequential:
        for parts in zip(*(act._modules.values() for act in acts), strict=True):
            h = _run(parts, h, groups)
        return h
    if kind is Signed:
        return -_run([act._modules["inner"] for act in acts], -h if first.flip else h, groups)
    if kind not in _TENSORS:
        y: Tensor = first(h)
        return y
    run: Callable[..., Tensor] = {Cosine: _cosine, ScaleShift: _scale_shift}.get(kind, _linear)
    return run(groups, h, *(_stack(acts, name, h.dtype) for name in _TENSORS[kind]))


def _stack(acts: Sequence[nn.Module], name: str, dtype: torch.dtype) -> Tensor | None:
    tensors = [act._parameters.get(name) for act in acts]
    return None if tensors[0] is None else torch.stack(tensors).to(dtype)  # type: ignore[arg-type]


def _cosine(groups: Groups, h: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
    return torch.cos(groups.rows(frequency) * h + groups.rows(phase))


def _scale_shift(groups: Groups, h: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    h = h if scale is None else h * groups.rows(scale)
    return h if shift is None else h + groups.rows(shift)


def _linear(groups: Groups, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = groups.product(h, weight)
    return y if bias is None else y + groups.rows(bias)

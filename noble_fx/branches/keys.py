"""The keys by which graphs name a σ: a graph holds tensors and a string, and the string says what is computed.

A key is a hash of what σ does (`recording.py`), in train and in eval mode, and of the names and shapes of its tensors.
So equal structures have equal keys in every process, wherever their classes stand, and two activations that differ in
anything that shows in their results, however hidden, have two keys.

The parts of the zoo and PyTorch's own pointwise modules are known to be determined by a few settings, so their
recordings are remembered by these; everything else is recorded each time.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from noble_fx import own_code
from noble_fx.branches.activations import Cosine, Gate, Mixer, ScaleShift, Signed
from noble_fx.branches.adapters import SideBySide, Weighted
from noble_fx.branches.folded import Cos
from noble_fx.branches.observed import Notes, quiet, watched
from noble_fx.branches.recording import asks_for_grad_mode, elsewhere, record, sampled, with_tensors
from noble_fx.errors import ConfigError, Refusal

# What a module's forward reads besides its parameters, buffers and children. Exact classes only.
_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((Cosine, Mixer, ScaleShift, Gate, Cos, nn.Identity, nn.Sequential, nn.Linear), ()),
    Signed: ("flip",),
    Weighted: (),
    SideBySide: ("channels",),
    **dict.fromkeys((nn.Tanh, nn.Sigmoid, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink), ()),
    **dict.fromkeys((nn.ReLU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.SELU), ("inplace",)),
    nn.ReLU6: ("min_val", "max_val", "inplace"),
    **dict.fromkeys((nn.ELU, nn.CELU), ("alpha", "inplace")),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.GELU: ("approximate",),
    nn.Softplus: ("beta", "threshold"),
}
_FORWARDS = {kind: kind.forward for kind in _SETTINGS}  # whoever puts another one there is recorded
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class _Known:
    """What stands behind a key: a copy of σ without numbers, and why it cannot be traced where that is known."""

    template: nn.Module | None
    runnable: nn.Module | None  # the same, without hooks
    refusal: Refusal | None


_KNOWN: dict[str, _Known] = {}
_KEYS: dict[Any, str] = {}  # of what is determined by its settings


@dataclass(frozen=True)
class Recognised:
    """A σ by its key, and what it read and wrote of its modules, by their paths, while it was recorded.

    `after` is the copy that ran, None where σ is of parts that are known to read their settings and write nothing.
    """

    key: str
    notes: Mapping[str, Notes]
    after: nn.Module | None = None


def activation_key(act: nn.Module, label: str, rank: int) -> str:
    """The key under which `template` finds this σ of `rank` channels again; equal maths, equal key, in any process."""
    return recognise(act, label, rank).key


def recognise(act: nn.Module, label: str, rank: int) -> Recognised:
    """The key of this σ of `rank` channels, and what its maths was seen to depend on."""
    settings = _settings(act)
    if settings is None:
        return _recorded(act, label, rank)
    question = (label, rank, settings)
    if question not in _KEYS:
        _KEYS[question] = _recorded(act, label, rank).key
    notes = {path: Notes({"forward", *_SETTINGS[type(part)]}) for path, part in act.named_modules()}
    return Recognised(_KEYS[question], notes)


def made_of_known_parts(act: nn.Module) -> bool:
    """Whether σ is a chain of the zoo's parts and of PyTorch's own, which treat rows one by one."""
    return _settings(act) is not None


def template(key: str) -> nn.Module:
    """The activation of this key, on the meta device; its tensors are only names and shapes."""
    return _of(key, "template")


def runnable(key: str) -> nn.Module:
    """The template, to be run with other tensors in the place of its own: no hook sees it."""
    return _of(key, "runnable")


def _of(key: str, what: str) -> nn.Module:
    act = getattr(_KNOWN.get(key), what, None)
    if act is None:
        raise ConfigError(
            f"activation {key!r} is not known in this process; build or load the model that uses it with noble_fx first"
        )
    return act


def why_not_recorded(key: str) -> Refusal | None:
    """Why nothing is known of what this σ computes, so that another of the same key may be another."""
    known = _KNOWN.get(key)
    return None if known is None else known.refusal


def _recorded(act: nn.Module, label: str, rank: int) -> Recognised:
    notes: dict[str, Notes] = {}
    text, after, refusal = elsewhere(lambda: _recording(act, rank, notes))
    # The code counts as well: of a graph with our operator, AOTAutograd's cache sees the key alone.
    key = f"{label}-{hashlib.sha256(f'{own_code.digest()} {text}'.encode()).hexdigest()[:12]}"
    if key not in _KNOWN:
        blank = _on_meta(act)
        _KNOWN[key] = _Known(blank, None if blank is None else quiet(copy.deepcopy(blank)), refusal)
    return Recognised(key, notes, after)


def _recording(act: nn.Module, rank: int, notes: dict[str, Notes]) -> tuple[str, nn.Module | None, Refusal | None]:
    """The text that a key is the hash of, the copy that was run, and why the text does not say what σ computes."""
    tensors = [*act.named_parameters(), *act.named_buffers()]
    # A dtype that `.to` changes is none of σ's: a model in bfloat16 has the keys that it had in float32.
    kinds = ["float" if tensor.is_floating_point() else str(tensor.dtype) for _, tensor in tensors]
    shapes = [(name, tuple(tensor.shape), kind) for (name, tensor), kind in zip(tensors, kinds, strict=True)]
    texts = [f"{rank} {len(list(act.parameters()))} {shapes}"]
    try:
        own = sampled(act, torch.float32)

        def run(dtype: torch.dtype, backward: bool) -> None:
            with watched(own, notes):
                texts.append(record(own, rank, dtype, backward))

        own.train()
        run(torch.float32, True)
        own.eval()
        run(torch.float32, False)
        own.double()
        run(torch.float64, False)  # a cast to float32 shows only here
        if asks_for_grad_mode(own, rank, torch.float64):
            texts.append("something else where no gradients are recorded")
    except Exception as error:
        reason = f"{type(error).__name__} while tracing: {first_line(error)}"
        return "\n".join([*texts, type(error).__qualname__]), None, Refusal(reason)
    return "\n".join(texts), own, None


def first_line(error: Exception) -> str:
    """What an error says, in a line; its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _on_meta(act: nn.Module) -> nn.Module | None:
    try:
        return with_tensors(act, lambda tensor: torch.empty_like(tensor, device="meta"))
    except Exception:  # what cannot be copied was not recorded either
        return None


def _settings(act: nn.Module) -> Any:
    """All that determines what σ computes, the same for equal ones; None where some part of it is not known to."""
    tensors = [*act.named_parameters(), *act.named_buffers()]
    # A module or a tensor that stands at several places has one path, its first: places that share one say the same.
    paths = {id(part): path for path, part in act.named_modules()} | {id(tensor): name for name, tensor in tensors}
    parts = []
    for part in act.modules():
        kind, values = type(part), vars(part)
        if kind not in _SETTINGS or kind.forward is not _FORWARDS[kind] or "forward" in values:
            return None
        own = [values.get(name) for name in _SETTINGS[kind]]
        if any(values[hooks] for hooks in _HOOKS) or not all(type(value) in (bool, int, float, str) for value in own):
            return None
        held = {**part._parameters, **part._buffers, **part._modules}
        parts.append((kind, repr(own), tuple((name, paths.get(id(item))) for name, item in held.items())))
    return tuple(parts), tuple((name, tensor.shape, tensor.is_floating_point()) for name, tensor in tensors)

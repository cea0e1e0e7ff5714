"""The published recipes by name: how a branch is drawn, and how fast each part of it learns.

The numbers of the presets come from arXiv 2603.06492 (`paper`: the text's appendix) and from its author's
code (`reference`); the two differ. `flat` is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from noble_fx.errors import ConfigError, shown


@dataclass(frozen=True)
class NoblePreset:
    """One recipe: which biases exist, how a branch is drawn, and how fast each part learns.

    A learning-rate multiplier `(min(K, N) / r) ** exponent` belongs to U and to M, a constant to the rest.
    """

    name: str
    down_bias: bool  # d exists (never when σ is the identity)
    mixer_bias: bool  # m exists
    mixer_init: str  # "xavier_uniform", or "normal": N(0, mixer_gain / √r)
    mixer_gain: float = 0.5
    frequency_range: tuple[float, float] = (0.8, 1.2)
    phase_std: float = 0.1
    up_gain: float = 0.01  # α of U ~ N(0, α / √r)
    base_gain: float = 0.5  # W ~ N(0, base_gain / √K), only with init_base=True
    lr_up_exponent: float = 0.6
    lr_mixer_exponent: float = 0.45
    lr_frequency: float = 3.0
    lr_phase: float = 5.0
    lr_scale: float = 1.0
    lr_shift: float = 1.0
    decay_frequency: bool = False  # weight decay on ω and φ

    def __post_init__(self) -> None:
        kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
            "str": ("a text", lambda value: isinstance(value, str)),
            "bool": ("True or False", lambda value: isinstance(value, bool)),
            "float": (f"a number within ±{_LARGEST}", _is_number),
            "tuple[float, float]": (f"two numbers within ±{_LARGEST}, the smaller one first", _is_range),
        }
        for field in dataclasses.fields(self):
            said, holds = kinds[str(field.type)]
            if not holds(getattr(self, field.name)):
                raise ConfigError(f"{field.name}={shown(getattr(self, field.name))} of a preset must be {said}")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={shown(getattr(self, name))} of a preset must not be negative")
        for name in ("lr_up_exponent", "lr_mixer_exponent"):
            if abs(getattr(self, name)) > _STEEPEST:
                raise ConfigError(f"{name}={shown(getattr(self, name))} of a preset must be within ±{_STEEPEST}")
        if self.mixer_init not in ("xavier_uniform", "normal"):
            raise ConfigError(f"mixer_init={shown(self.mixer_init)} is unknown; use 'xavier_uniform' or 'normal'")


# Spreads of what is drawn, and multipliers of rates.
_NOT_NEGATIVE = ("mixer_gain", "phase_std", "up_gain", "base_gain", "lr_frequency", "lr_phase", "lr_scale", "lr_shift")
_LARGEST = 65504  # of float16: what is drawn with it exists in every dtype that a model may have
_STEEPEST = 8  # (min(K, N) / r) ** exponent stays a number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_range(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


PRESETS = {
    "paper": NoblePreset("paper", down_bias=False, mixer_bias=False, mixer_init="xavier_uniform"),
    "reference": NoblePreset(
        "reference",
        down_bias=True,
        mixer_bias=True,
        mixer_init="normal",
        lr_up_exponent=0.4,
        lr_mixer_exponent=0.5,
        lr_frequency=2.0,
        lr_phase=4.0,
        lr_scale=5.0,
        lr_shift=3.0,
        decay_frequency=True,
    ),
    # Ours, not published: the paper's branch, every part of it at the base's rate (docs/effect.md).
    "flat": NoblePreset(
        "flat",
        down_bias=False,
        mixer_bias=False,
        mixer_init="xavier_uniform",
        lr_up_exponent=0.0,
        lr_mixer_exponent=0.0,
        lr_frequency=1.0,
        lr_phase=1.0,
    ),
}

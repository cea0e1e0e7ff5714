"""What a user can choose: the published recipes (`NoblePreset`) and one transform's settings (`NobleConfig`).

The numbers of the presets come from arXiv 2603.06492 (`paper`: the text's appendix) and from its author's
code (`reference`); the two differ. `flat` is ours.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from noble_fx.errors import ConfigError, check_flag, nearest, printable, shown

RankSpec = int | float | str
CAPTURES = ["auto", "modules", "fx", "export"]  # noble_fx.captures.register_capture adds to them
GROUPS = ("auto", "all", "attention", "ffn")
SCOPES = ("linear", "block")


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


@dataclass(frozen=True)
class NobleConfig:
    """All settings of one `transform`; `to_dict`/`from_dict` round-trip through JSON.

    Raises `ConfigError` when a value cannot be (rank ≤ 0, unknown preset, a regular expression that does not compile).
    """

    rank: RankSpec = 64  # int | float in (0, 1): share of min(K, N) | "4%": branch parameters over model parameters
    act: str | Callable[[int], Any] = "cosnet"
    branch: str | type = "noble"  # the kind of branch: a name, or a subclass of noble_fx.Branch
    select: str | Sequence[str] | Callable[[Any], bool] = "auto"
    exclude: str | Sequence[str] | None = None
    rank_pattern: dict[str, RankSpec] | None = None
    preset: str | NoblePreset = "paper"
    init_base: bool = False
    capture: str = "auto"
    fuse: bool | str = True  # "require": an error where a site would have no generated kernels on a GPU
    seed: int | None = None
    scope: str = "linear"  # "block": one branch around each whole repeated block
    base: str | None = None  # another form of W beside each branch: "factorized"; None: W as it is
    base_rank: int | float | None = None  # of that form: a number, or a share of min(K, N)

    def __post_init__(self) -> None:
        check_rank(self.rank, "rank")
        if self.rank_pattern is not None and not isinstance(self.rank_pattern, dict):
            raise ConfigError(f"rank_pattern={shown(self.rank_pattern)} must be None or a dictionary {{regex: rank}}")
        for pattern, rank in (self.rank_pattern or {}).items():
            check_regex(pattern, "rank_pattern")
            check_rank(rank, f"rank_pattern[{shown(pattern)}]", budget=False)
        if not isinstance(self.capture, str) or self.capture not in CAPTURES:
            raise ConfigError(f"capture={shown(self.capture)} is unknown; use one of {', '.join(CAPTURES)}")
        if not isinstance(self.act, str) and not callable(self.act):
            raise ConfigError(f"act={shown(self.act)} must be a name or a callable(rank) -> nn.Module")
        if not isinstance(self.branch, str | type) or self.branch == "":
            raise ConfigError(f"branch={shown(self.branch)} must be a name or a subclass of noble_fx.Branch")
        if not callable(self.select):
            _check_names(self.select, "select", GROUPS)
        if self.exclude is not None:
            _check_names(self.exclude, "exclude", ())
        check_flag("init_base", self.init_base, ConfigError)
        if not isinstance(self.fuse, bool) and not (isinstance(self.fuse, str) and self.fuse == "require"):
            raise ConfigError(f"fuse={shown(self.fuse)} must be True, False or 'require'")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise ConfigError(f"seed={shown(self.seed)} must be None or an integer ≥ 0")
        _check_scope(self)
        _check_base(self)
        self.recipe  # noqa: B018 - refuses an unknown preset here, not at first use

    @property
    def recipe(self) -> NoblePreset:
        """The preset itself, looked up when it was given by name."""
        if isinstance(self.preset, NoblePreset):
            return self.preset
        if not isinstance(self.preset, str) or self.preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise ConfigError(f"preset={shown(self.preset)} is unknown; use one of {known}, or a NoblePreset(...)")
        return PRESETS[self.preset]

    def replace(self, **changes: Any) -> NobleConfig:
        """A copy with some fields changed; an unknown field is a `ConfigError`."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(
                    f"{shown(name)} is not a setting{nearest(name, known)}; the settings are {', '.join(known)}"
                )
        return dataclasses.replace(self, **changes)

    @classmethod
    def of(cls, config: NobleConfig | None, settings: dict[str, Any]) -> NobleConfig:
        """What a call asks for: `config`, or all that is usual, with the settings that were given beside it."""
        if config is None:
            config = cls()
        if not isinstance(config, cls):
            raise ConfigError(f"config={shown(config)} must be None or a NobleConfig(...)")
        return config.replace(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a callable has none, so it is a `ConfigError` that names the way out."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not isinstance(self.act, str):
            raise ConfigError(
                "act is a callable, which a file cannot hold; give it a name with "
                "noble_fx.register_activation(name, factory) and use act=name"
            )
        if not isinstance(self.branch, str):
            raise ConfigError(
                "branch is a class, which a file cannot hold; give it a name with "
                "noble_fx.register_branch(name, class) and use branch=name"
            )
        if callable(self.select):
            raise ConfigError("select is a callable, which a file cannot hold; use a regex or a list of module names")
        if isinstance(self.preset, NoblePreset):
            out["preset"] = dataclasses.asdict(self.preset)
        for name in ("select", "exclude"):
            if out[name] is not None and not isinstance(out[name], str):
                out[name] = list(out[name])
        return out

    def text(self) -> str:
        """All settings in one line, callables by name: equal settings have equal text, in every process."""

        def plain(value: Any) -> Any:
            if isinstance(value, NoblePreset):
                return dataclasses.asdict(value)
            kind = value if hasattr(value, "__qualname__") else type(value)
            return f"{kind.__module__}.{kind.__qualname__}"

        return json.dumps({f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, default=plain)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NobleConfig:
        """The inverse of `to_dict`; unknown keys and impossible values are a `ConfigError`."""
        values = dict(values)
        if isinstance(values.get("preset"), dict):
            preset = dict(values["preset"])
            if isinstance(preset.get("frequency_range"), list):
                preset["frequency_range"] = tuple(preset["frequency_range"])
            try:
                values["preset"] = NoblePreset(**preset)
            except TypeError as error:
                raise ConfigError(f"preset: {printable(str(error).partition(') ')[2] or error)}") from None
        return cls().replace(**values)

    def __getstate__(self) -> dict[str, Any]:
        # Each branch of a transformed model carries its config. A lambda in it must not make the model unpicklable:
        # the built activation is stored as a module, the factory is only kept where it can be imported again.
        state = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("act", "branch", "select"):
            if callable(state[name]) and not _importable(state[name]):
                state[name] = f"<{getattr(state[name], '__qualname__', type(state[name]).__qualname__)}>"
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)


def _check_scope(config: NobleConfig) -> None:
    """Refuse an unknown scope, and what a block has not: maps of its own with roles, a weight to draw."""
    if not isinstance(config.scope, str) or config.scope not in SCOPES:
        raise ConfigError(f"scope={shown(config.scope)} is unknown; use one of {', '.join(SCOPES)}")
    if config.scope == "block" and config.select in ("attention", "ffn"):
        raise ConfigError(
            f"select={config.select!r} is for scope='linear': scope='block' has one branch around each whole block; "
            "choose blocks by a regular expression or a list of their names, or pass scope='linear'"
        )
    if config.scope == "block" and config.init_base:
        raise ConfigError(
            "init_base=True draws the weight beside each branch, and a block has none; pass init_base=False, or "
            "scope='linear'"
        )


def _check_base(config: NobleConfig) -> None:
    """Refuse a form of W without a rank, a rank without a form, and what a block has not."""
    if config.base is None:
        if config.base_rank is not None:
            raise ConfigError(
                f"base_rank={shown(config.base_rank)} is the rank of another form of W: say which, base=…"
            )
        return
    if not isinstance(config.base, str):
        raise ConfigError(f"base={shown(config.base)} must be None or the name of a form of W")
    if config.base_rank is None:
        raise ConfigError(f"base={config.base!r} needs a rank: base_rank=…, a number or a share of min(K, N)")
    check_rank(config.base_rank, "base_rank", budget=False)
    if config.scope == "block":
        raise ConfigError("base=… is another form of a layer's W, and scope='block' has branches around whole blocks")


def check_rank(rank: Any, name: str, budget: bool = True) -> None:
    """Refuse a rank that no layer could have; the upper bound min(K, N) is checked where the layer is known."""
    forms = "an integer ≥ 1, a share of min(K, N) between 0 and 1" + (", or a budget such as '4%'" if budget else "")
    ok = False
    if isinstance(rank, str):
        ok = budget and parse_budget(rank) is not None
    elif isinstance(rank, bool):
        ok = False
    elif isinstance(rank, int):
        ok = rank >= 1
    elif isinstance(rank, float):
        ok = 0.0 < rank < 1.0
    if not ok:
        raise ConfigError(f"{name}={shown(rank)} is not a rank; use {forms}")


def plain_rank(rank: Any) -> Any:
    """An integer of any kind, such as NumPy's, as Python's own; anything else as it is."""
    return operator.index(rank) if isinstance(rank, Integral) and not isinstance(rank, bool) else rank


def parse_budget(rank: RankSpec) -> float | None:
    """`"4%"` → 0.04; None for anything that is not a positive percentage."""
    if not isinstance(rank, str):
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", rank)
    share = float(match.group(1)) / 100 if match else 0.0
    return share if 0 < share < math.inf else None


def resolve_rank(rank: RankSpec, in_features: int, out_features: int) -> int:
    """The rank of one site: an integer as it is, a share of min(K, N) rounded, at least 1."""
    if isinstance(rank, float):
        return max(1, round(rank * min(in_features, out_features)))
    assert isinstance(rank, int), "a budget is resolved over all sites at once"
    return rank


def check_regex(pattern: str, name: str) -> None:
    """Refuse a pattern that `re` cannot compile, saying where."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError, TypeError) as error:
        raise ConfigError(f"{name}={shown(pattern)} is not a regular expression: {printable(error)}") from None


def _check_names(value: Any, name: str, groups: Collection[str]) -> None:
    """Refuse what is neither a group, nor a regular expression, nor a list of names."""
    if isinstance(value, str):
        if value not in groups:
            check_regex(value, name)
    elif not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(each, str) for each in value):
        listed = f"one of {', '.join(groups)}, " if groups else ""
        raise ConfigError(f"{name}={shown(value)} must be {listed}a regular expression or a list of module names")


def _importable(fn: Any) -> bool:
    value: Any = sys.modules.get(getattr(fn, "__module__", None) or "")
    for part in getattr(fn, "__qualname__", "?").split("."):
        value = getattr(value, part, None)
    return value is fn

"""What a user can choose: one transform's settings (`NobleConfig`)."""

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
from noble_fx.presets import PRESETS as PRESETS
from noble_fx.presets import NoblePreset as NoblePreset

RankSpec = int | float | str
CAPTURES = ["auto", "modules", "fx", "export"]  # noble_fx.captures.register_capture adds to them
GROUPS = ("auto", "all", "attention", "ffn")
SCOPES = ("linear", "block")
BASE_SETTINGS = ("base", "base_rank", "base_settings", "guide")  # those of another form of W
ADAPTER_SETTINGS = ("alpha", "rslora", "dropout", "adapter")  # those of a linear branch, branch="lora"


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
    base: str | None = None  # another form of W beside each branch: "factorized", …; None: W as it is
    base_rank: int | float | None = None  # of that form: a number, or a share of min(K, N)
    base_settings: dict[str, Any] | None = None  # further numbers of that form: density, blocks, …
    guide: float = 0.0  # for which share of training W goes on beside its new form, fading out
    alpha: float | None = None  # of branch="lora": its scale is alpha / √r; None: 16
    rslora: bool | None = None  # False: alpha / r
    dropout: float | None = None  # of what a linear branch reads, in training; None: 0
    adapter: str | None = None  # what a linear branch is called; None: "default"

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
        _check_adapter(self)
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

    def without_base(self) -> NobleConfig:
        """The same settings of branches, and W as it is."""
        defaults = NobleConfig()
        return self.replace(**{name: getattr(defaults, name) for name in BASE_SETTINGS})

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
    """Refuse what belongs to another form of W without one, and what a block has not; the kind itself checks the rest.

    (`noble_fx.bases.kinds.check_base`, once a model is looked at.)
    """
    if config.base is None:
        given = {"base_rank": config.base_rank, "base_settings": config.base_settings, "guide": config.guide or None}
        if name := next((name for name, value in given.items() if value is not None), None):
            raise ConfigError(f"{name}={shown(given[name])} is of another form of W: say which, base=…")
        return
    if not isinstance(config.base, str):
        raise ConfigError(f"base={shown(config.base)} must be None or the name of a form of W")
    if config.base_rank is not None:
        check_rank(config.base_rank, "base_rank", budget=False)
    settings = {} if config.base_settings is None else config.base_settings
    plain = isinstance(settings, dict) and all(isinstance(name, str) for name in settings)
    if not plain or not all(isinstance(value, bool | int | float | str) for value in settings.values()):
        raise ConfigError(f"base_settings={shown(settings)} must be None or a dictionary {{name: number or text}}")
    if isinstance(config.guide, bool) or not isinstance(config.guide, int | float) or not 0 <= config.guide <= 1:
        raise ConfigError(f"guide={shown(config.guide)} must be a share of training between 0 and 1")
    if config.scope == "block":
        raise ConfigError("base=… is another form of a layer's W, and scope='block' has branches around whole blocks")


def _check_adapter(config: NobleConfig) -> None:
    """Refuse values that no linear branch could have; which kinds take them is theirs to say."""
    check_alpha(config.alpha if config.alpha is not None else 1.0)
    if config.rslora is not None:
        check_flag("rslora", config.rslora, ConfigError)
    dropout = 0.0 if config.dropout is None else config.dropout
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(f"dropout={shown(dropout)} must be a number ≥ 0 and < 1")
    if config.adapter is not None:
        check_adapter_name(config.adapter)


def check_alpha(alpha: Any) -> None:
    """Refuse what is no positive number."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ConfigError(f"alpha={shown(alpha)} must be a number > 0")


def check_adapter_name(name: Any) -> None:
    """Refuse what cannot be a part of a parameter's name, or is one of torch's own."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"adapter={shown(name)} must be a name of letters, digits, '_' and '-'")


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

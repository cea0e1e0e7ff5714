"""Hugging Face folders with branches: what `save_pretrained` wrote of a transformed model, and base checkpoints.

    model = noble_fx.from_pretrained(AutoModelForCausalLM, "folder")                              branches as saved
    model = noble_fx.from_pretrained(LlamaForCausalLM, "base", noble=NobleConfig(rank=64))        branches drawn

The model is built by transformers, with branches before its weights are read: dtypes, shards, devices and the hub are
transformers' own business, and a tensor that the folder lacks is initialised as its module says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from noble_fx.attach.attach import named_branches
from noble_fx.attach.bases import named_bases, put_bases
from noble_fx.attach.model_config import BASES, KEY
from noble_fx.config import NobleConfig
from noble_fx.errors import CheckpointError, ConfigError, NobleError, printable, shown
from noble_fx.transform import transform

_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


def from_pretrained(cls: Any, folder: str | Path, *args: Any, noble: NobleConfig | None = None, **kwargs: Any) -> Any:
    """`cls.from_pretrained(folder, *args, **kwargs)` with the branches that the folder's config asks for, or `noble`.

    `cls` is a model class of transformers, an Auto class included. Branches that the folder has no values for are drawn
    as `transform` draws them, with a warning where the config says that it should have them.
    Raises `CheckpointError` where neither the folder nor `noble` says anything of branches, where the two differ, or
    where the folder holds branches that its settings do not make; and whatever transformers raises.
    """
    if noble is not None and not isinstance(noble, NobleConfig):
        raise ConfigError(f"noble={shown(noble)} must be None or a NobleConfig(...)")
    described = _described(folder, kwargs)
    written, bases = getattr(described, KEY, None), getattr(described, BASES, None) or {}
    config = _settled(folder, written, noble) if written is not None or noble is not None or not bases else None
    wanted = kwargs.pop("output_loading_info", False)
    kind = _concrete(cls, described)
    model, info = _transforming(kind, config, _checked(folder, bases)).from_pretrained(
        folder, *args, output_loading_info=True, **kwargs
    )
    model.__class__ = kind
    _check(folder, model, info, written is not None)
    return (model, info) if wanted else model


def _described(folder: Any, kwargs: dict[str, Any]) -> Any:
    """The folder's config, or the one that was given in its place."""
    from transformers import AutoConfig, PreTrainedConfig

    given = kwargs.get("config")
    if isinstance(given, PreTrainedConfig):
        return given
    asked = {name: kwargs[name] for name in _HUB if name in kwargs}
    return AutoConfig.from_pretrained(folder if given is None else given, **asked)


def _settled(folder: Any, written: Any, noble: NobleConfig | None) -> NobleConfig:
    where = printable(folder)
    if written is None:
        if noble is None:
            raise CheckpointError(
                f"the config of {where} says nothing of branches; give noble=NobleConfig(...) to draw them beside "
                "a base checkpoint. (A σ without a name leaves no settings in a config: noble_fx.register_activation)"
            )
        if noble.base is not None:
            raise CheckpointError(
                f"base={noble.base!r} is filled from weights, and {where} would be read into parts that it has not; "
                "load the model as it is, then noble_fx.transform(model, base=…)"
            )
        return noble
    try:
        own = NobleConfig.from_dict(written) if isinstance(written, dict) else None
    except NobleError as error:
        raise CheckpointError(f"'{KEY}' in the config of {where}: {error}") from error
    if own is None:
        raise CheckpointError(
            f"'{KEY}' in the config of {where} is {shown(written)}, which is no dictionary of settings"
        )
    asked = own.to_dict() if noble is None else {**noble.to_dict(), "capture": own.capture}
    if differ := [name for name, value in asked.items() if own.to_dict()[name] != value]:
        raise CheckpointError(
            f"the branches of {where} were made with other settings than noble=... has ({', '.join(differ)}); leave "
            "noble out"
        )
    return own


def _concrete(cls: Any, described: Any) -> Any:
    """The model class itself, where an Auto class was given."""
    if hasattr(cls, "config_class") and isinstance(cls, type):
        return cls
    try:
        found = cls._model_mapping[type(described)]
    except (AttributeError, KeyError):
        raise ConfigError(
            f"{shown(cls)} does not say which class a {type(described).__name__} belongs to; give the model class "
            "itself"
        ) from None
    named = {kind.__name__: kind for kind in (found if isinstance(found, list | tuple) else [found])}
    return next((named[name] for name in described.architectures or () if name in named), next(iter(named.values())))


def _checked(folder: Any, bases: Any) -> dict[str, Any]:
    if not isinstance(bases, dict):
        raise CheckpointError(
            f"'{BASES}' in the config of {printable(folder)} is {shown(bases)}, which is no dictionary"
        )
    return bases


def _transforming(kind: Any, config: NobleConfig | None, bases: dict[str, Any]) -> Any:
    """`kind` as a class that transforms itself, under the same name."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        if bases and not named_bases(self):
            put_bases(self, bases)
        if config is not None and not named_branches(self):  # of a class that transforms itself
            transform(self, config=config.without_base() if bases else config)

    return type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})


def _check(folder: Any, model: Any, info: Any, should_have_branches: bool) -> None:
    where = printable(folder)
    if strange := _of_branches(info["unexpected_keys"]):
        raise CheckpointError(
            f"{where} holds {len(strange)} tensors of branches that its settings do not make ({strange[0]!r}, ...): "
            "were branches added, taken out or transformed in another model class after its config was written?"
        )
    forms = tuple(f"{fqn}.base." for fqn in named_bases(model))
    if lacks := [key for key in sorted(info["missing_keys"]) if forms and key.startswith(forms)]:
        raise CheckpointError(
            f"{where} has no values for {len(lacks)} tensors of weights of another form ({lacks[0]!r}, ...): were they "
            "merged or cut after its config was written? noble_fx.save and load know the form of each one"
        )
    missing = _of_branches(info["missing_keys"])
    if missing and should_have_branches:
        warnings.warn(
            f"{where} has no values for {len(missing)} tensors of branches ({missing[0]!r}, ...), which are drawn; was "
            "it saved by a model without branches?",
            stacklevel=3,
        )


def _of_branches(keys: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if "noble" in key.split("."))

"""`noble_config.json`: the settings of the transform, and what else `load` needs beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from noble_fx.config import NobleConfig
from noble_fx.errors import CheckpointError, ConfigError, printable
from noble_fx.files import existing_file, read_json
from noble_fx.sites.from_file import read_entries, wrong_site
from noble_fx.sites.site import Site

CONFIG = "noble_config.json"
FORMAT = 1
MADE_BY = "a folder made by noble_fx.save has one"


@dataclass(frozen=True)
class Described:
    """What the file says: settings, inputs of an exported model or None, extra state by name, the chosen sites."""

    config: NobleConfig | None  # None for a model that has none, but weights of other forms or adapters
    inputs: dict[str, Any] | None
    extra: dict[str, Any]
    sites: Any = ()  # as they are written: `load` finds its own
    versions: Any = None
    bases: dict[str, Any] = field(default_factory=dict)  # of weights that have another form, by the layer's name
    adapters: dict[str, Any] = field(default_factory=dict)  # of each layer, by its name and theirs


def write(
    file: Path,
    config: dict[str, Any] | None,
    sites: list[dict[str, Any]],
    extra: dict[str, Any],
    inputs: Any,
    bases: Mapping[str, Any] = MappingProxyType({}),
    adapters: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the file; all are plain JSON values. Raises `CheckpointError` or `OSError`."""
    described = {"format": FORMAT, "config": config, "sites": sites, "versions": {"torch": torch.__version__}}
    if extra:
        described["extra_state"] = extra
    if inputs is not None:
        described["inputs"] = inputs
    if bases:
        described["bases"] = dict(bases)
    if adapters:
        described["adapters"] = dict(adapters)
    try:
        file.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except UnicodeEncodeError:
        raise CheckpointError(f"{CONFIG} cannot be written: a name in it is no Unicode") from None


def read(folder: Path) -> Described:
    """Read the file in `folder`; raises `CheckpointError` for whatever `write` does not write."""
    path = existing_file(folder / CONFIG, CheckpointError, MADE_BY)
    try:
        described = read_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{printable(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _not_ours(path, str(error)) from None
    if not isinstance(described, dict) or "format" not in described:
        raise _not_ours(path, "'format' is missing")
    if described["format"] != FORMAT:
        raise CheckpointError(
            f"{printable(path)} has format {described['format']!r:.60}; this version reads {FORMAT}: update noble_fx"
        )
    settings, bases = described.get("config"), described.get("bases", {})
    without = settings is None and "config" in described and (bases or described.get("adapters"))
    if not isinstance(settings, dict) and not without:
        raise _not_ours(path, f"'config' is {settings!r:.60}, which is no dictionary")
    inputs, extra, adapters = described.get("inputs"), described.get("extra_state", {}), described.get("adapters", {})
    given = {"inputs": {} if inputs is None else inputs, "extra_state": extra, "bases": bases, "adapters": adapters}
    for name, value in given.items():
        if not isinstance(value, dict):
            raise _not_ours(path, f"{name!r} is {value!r:.60}, which is no dictionary")
    try:
        config = None if settings is None else NobleConfig.from_dict(settings)
    except ConfigError as error:
        raise _not_ours(path, str(error)) from error
    return Described(config, inputs, extra, described.get("sites", []), described.get("versions"), bases, adapters)


def read_sites(folder: Path, described: Described) -> tuple[Site, ...]:
    """The sites with a branch, as the file lists them; raises `CheckpointError` where the list is damaged."""
    if wrong := wrong_site(described.sites):
        raise _not_ours(folder / CONFIG, wrong)
    return read_entries(described.sites)


def _not_ours(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{printable(path)} is not a config of noble_fx.save: {printable(reason)}")

"""The account of a file: an ONNX file of `export_onnx`, or a folder of `save`. Nothing in it is run or loaded."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from noble_fx.attach.attach import branch_paths
from noble_fx.checkpoints import config_file, weights_file
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, ExportError, printable
from noble_fx.explaining.account import CARRIED, Account
from noble_fx.explaining.of_model import config_values, settings_of
from noble_fx.explaining.planned import planned_entries
from noble_fx.sites.from_file import read_account, sites_of


def account_of_file(path: str | Path) -> Account:
    """What an ONNX file or a saved folder says of itself; raises `ExportError` or `CheckpointError` for any other."""
    if not os.path.isdir(path):
        return _of_onnx(Path(path))
    if not os.path.exists(os.path.join(path, config_file.CONFIG)):
        made = "noble_fx.export_onnx(model, …, path=…) makes such a file, and noble_fx.save a folder that has one"
        raise ExportError(f"{printable(path)} is a folder without a {config_file.CONFIG}; {made}")
    return _of_folder(Path(path))


def _of_onnx(path: Path) -> Account:
    account = read_account(path)
    act = account["settings"].get("act", "")
    passes = {f"pass {rule}": f"{count} rewrites" for rule, count in account["passes"].items()}
    return Account(
        model=f"{account['model']} in {path.name}",
        entries=planned_entries(sites_of(account), CARRIED, _config(account["config"]), act),
        settings={**account["settings"], **passes, "written with": _versions(account["versions"])},
        config=account["config"],
        base_params=account["base_params"],
        branch_params=account["branch_params"],
        runs=False,
    )


def _config(values: dict[str, Any]) -> NobleConfig | None:
    """The settings of a file, where this process can make them out: a callable σ is in none."""
    try:
        return NobleConfig.from_dict(values) if "rank" in values else None
    except ConfigError:
        return None


def _of_folder(folder: Path) -> Account:
    described = config_file.read(folder)
    listed = config_file.read_sites(folder, described)
    stored = weights_file.read_header(folder)
    places = tuple(f"{path}." for site in listed for path in branch_paths(site))
    sizes = {name: math.prod(tensor.shape) for name, tensor in stored.items()}
    ours = sum(size for name, size in sizes.items() if name.startswith(places))
    config = described.config
    act = config.act if config is not None and isinstance(config.act, str) else ""
    settings = {
        **(settings_of(config, act) if config is not None else {}),
        "counted": f"the values in {weights_file.WEIGHTS}, buffers included",
        "written with": _versions(described.versions),
    }
    return Account(
        model=f"the model saved in {printable(folder)}",
        entries=planned_entries(listed, CARRIED, config, act),
        settings=settings,
        config={} if config is None else config_values(config),
        base_params=sum(sizes.values()) - ours,
        branch_params=ours,
        complete=False,
        runs=False,
    )


def _versions(versions: Any) -> str:
    """Packages and their versions, as a file has them."""
    named = versions.items() if isinstance(versions, dict) else ()
    return ", ".join(f"{name} {version}" for name, version in named)

"""A folder with a LoRA as peft writes it: its two files read to plain values, and written.

adapter_config.json           r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, target_modules, …
adapter_model.safetensors     base_model.model.<layer>.lora_A.weight [r, K] and .lora_B.weight [N, r]
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from noble_fx.errors import CheckpointError, printable
from noble_fx.files import existing_file, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt")
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# What says nothing of the map that was learned, or is read here.
_UNDERSTOOD = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        *("init_lora_weights", "eva_config", "megatron_core", "qalora_group_size", "runtime_config"),
    )
)
_DRAWN = (
    True,
    False,
    None,
    "gaussian",
    "eva",
    "orthogonal",
)  # that leave the layers as they are
_CONVERT = "peft's convert_to_lora makes a plain LoRA of most adapters; or merge it in peft (merge_and_unload)"


@dataclass(frozen=True)
class Lora:
    """One layer's part: A = D [r, K], B = U [N, r], and its alpha."""

    down: Tensor
    up: Tensor
    alpha: float


@dataclass(frozen=True)
class PeftAdapter:
    """A whole adapter, by the names of its layers."""

    layers: Mapping[str, Lora]
    rslora: bool
    dropout: float


def read(folder: Path) -> PeftAdapter:
    """What the folder says; raises `CheckpointError` that names what is no plain LoRA, is missing or does not fit."""
    config = _config(folder)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _tensors(folder).items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise _refused(folder, f"{printable(name)} is no part of a LoRA on a linear layer. {_CONVERT}")
        parts.setdefault(found[1], {})[found[2]] = tensor
    layers = {fqn: _lora(folder, fqn, pair, config) for fqn, pair in parts.items()}
    if not layers:
        raise _refused(folder, f"{WEIGHTS} is empty")
    return PeftAdapter(layers, config.get("use_rslora") is True, float(config.get("lora_dropout") or 0.0))


def _config(folder: Path) -> dict[str, Any]:
    path = existing_file(folder / CONFIG, CheckpointError, "a folder of peft's save_pretrained has one")
    try:
        config = read_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _refused(folder, f"{CONFIG} cannot be read: {printable(error)}") from None
    if not isinstance(config, dict):
        raise _refused(folder, f"{CONFIG} is no dictionary")
    if config.get("peft_type") != "LORA":
        raise _refused(folder, f"its peft_type is {printable(config.get('peft_type'))}, and LORA is read. {_CONVERT}")
    if config.get("bias", "none") != "none":
        raise _refused(folder, f"bias={printable(config['bias'])} has biases of the model itself in it")
    if config.get("init_lora_weights") not in _DRAWN:
        how = printable(config["init_lora_weights"])
        raise _refused(
            folder,
            f"init_lora_weights={how} changes the weights that the adapter is beside. peft's save_pretrained "
            "with path_initial_model_for_weight_conversion makes a plain LoRA of it",
        )
    for name, value in config.items():
        if value and name not in _UNDERSTOOD:
            raise _refused(folder, f"{printable(name)} is set, and a plain LoRA is read. {_CONVERT}")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            raise _refused(folder, f"{name} is no dictionary")
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).is_file():
        for name in _PICKLES:
            if (folder / name).exists():
                raise _refused(
                    folder,
                    f"{name} is a pickle, which runs code when it is read; load it where you trust it with peft, "
                    "and save_pretrained writes safetensors",
                )
    path = existing_file(folder / WEIGHTS, CheckpointError, "a folder of peft's save_pretrained has one")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _refused(folder, f"{WEIGHTS} is no safetensors file ({printable(error):.200})") from None


def _lora(folder: Path, fqn: str, pair: Mapping[str, Tensor], config: Mapping[str, Any]) -> Lora:
    down, up = pair.get("A"), pair.get("B")
    if down is None or up is None:
        raise _refused(folder, f"{printable(fqn)} has a lora_{'B' if down is None else 'A'} alone")
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
        raise _refused(folder, f"{printable(fqn)} has A {list(down.shape)} and B {list(up.shape)}, which do not fit")
    rank = _of_layer(config.get("rank_pattern"), fqn, config.get("r"))
    if rank != len(down):
        raise _refused(folder, f"{printable(fqn)} has rank {len(down)}, and {CONFIG} says {printable(rank)}")
    alpha = _of_layer(config.get("alpha_pattern"), fqn, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        raise _refused(folder, f"alpha of {printable(fqn)} is {printable(alpha)}, which is no number > 0")
    return Lora(down, up, float(alpha))


def _of_layer(patterns: Any, fqn: str, usual: Any) -> Any:
    """The value of the first pattern that is the end of a layer's name, or its whole; else the usual one."""
    try:
        return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", fqn)), usual)
    except re.error:
        return None


def _refused(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{printable(folder)} is no adapter that can be put here: {reason}")


def write(folder: Path, adapter: PeftAdapter, others: list[str], transposed: bool, base: str | None) -> None:
    """Write both files. `others` are the names of modules that have no such adapter; raises `OSError`."""
    ranks = {fqn: len(lora.down) for fqn, lora in adapter.layers.items()}
    alphas = {fqn: lora.alpha for fqn, lora in adapter.layers.items()}
    (rank, _), (alpha, _) = Counter(ranks.values()).most_common(1)[0], Counter(alphas.values()).most_common(1)[0]
    names = list(adapter.layers)
    # peft takes a name for the end of others, too.
    ends = any(other.endswith(f".{name}") for other in others for name in names)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": adapter.rslora,
        "rank_pattern": {re.escape(fqn): own for fqn, own in ranks.items() if own != rank},
        "alpha_pattern": {re.escape(fqn): own for fqn, own in alphas.items() if own != alpha},
        "target_modules": "|".join(map(re.escape, names)) if ends else names,
        "lora_dropout": adapter.dropout,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "init_lora_weights": True,
        "use_dora": False,
    }
    tensors = {
        f"base_model.model.{fqn}.lora_{letter}.weight": tensor.detach().cpu().contiguous()
        for fqn, lora in adapter.layers.items()
        for letter, tensor in (("A", lora.down), ("B", lora.up))
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors writes files for their owner alone

"""The settings of a transform in a Hugging Face model's own config, where `save_pretrained` writes them.

model.config.noble = {"rank": 64, "act": "cosnet", ...}        config.json of the folder
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from noble_fx.attach.attach import made_by, named_branches
from noble_fx.attach.bases import described_bases
from noble_fx.errors import ConfigError

KEY, BASES = "noble", "noble_bases"


def note(model: nn.Module) -> None:
    """Write what the model's branches and bases are into its config, or take out what is there of old ones.

    The config becomes the model's own: a user makes several models of one, and the others have no branches. Of settings
    that no file can hold (a callable for σ) nothing is written.
    """
    if not is_pretrained(model):
        return
    shared: Any = model.config
    told = {KEY: _settings(model), BASES: described_bases(model) or None}
    if all(value == vars(shared).get(key) for key, value in told.items()):
        return
    own = copy.copy(shared)
    for key, value in told.items():
        if value is not None:
            setattr(own, key, value)
        elif key in vars(own):
            delattr(own, key)
    for module in model.modules():
        if vars(module).get("config") is shared:  # its parts ask the same object
            vars(module)["config"] = own


def is_pretrained(model: nn.Module) -> bool:
    """Whether it is a model of transformers' own kind, with a config and `save_pretrained`."""
    kinds = [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(model).__mro__]
    return ("transformers", "PreTrainedModel") in kinds


def _settings(model: nn.Module) -> dict[str, Any] | None:
    branches = named_branches(model)
    config = made_by(branches.values()) if branches else None
    if config is None or config.capture not in ("auto", "modules"):
        return None
    try:
        return config.to_dict()
    except ConfigError:
        return None

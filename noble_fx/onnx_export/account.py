"""What an exported file says of itself, as JSON in its metadata; `sites/from_file.py` reads it back."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.errors import ConfigError
from noble_fx.explain import explain
from noble_fx.passes.history import Step
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.sites.from_file import FORMAT


def describe(model: nn.Module, steps: Sequence[Step], form: str, dtypes: Sequence[torch.dtype]) -> str:
    """Config, sites, settings, counts and versions; `form`: what a site is in the file."""
    explanation = explain(model)
    return json.dumps(
        {
            "format": FORMAT,
            "model": explanation.model,
            "config": _config(model),
            "settings": {**explanation.settings, "form": form, "dtype": ", ".join(map(_name, dtypes))},
            "sites": [site.to_dict() for site in explanation.sites],
            "base_params": explanation.base_params,
            "branch_params": explanation.branch_params,
            "passes": rewrites(steps),
            "versions": {name: version_of(name) for name in ("noble-fx", "torch", "onnx", "onnxscript")},
        }
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rewrites(steps: Sequence[Step]) -> dict[str, int]:
    """How often each pass changed something, in their order; what removes leftovers is not told."""
    return dict(Counter(step.rule for step in steps if not step.skipped and step.rule != remove_dead.name))


def _config(model: nn.Module) -> dict[str, Any]:
    """The settings of the model's branches; a callable among them cannot be written, and the file works without it."""
    branch = next(iter(named_branches(model).values()), None)
    if branch is None:
        return {}
    try:
        return branch.config.to_dict()
    except ConfigError:
        return {"act": branch.label}


def version_of(package: str) -> str:
    """The version of an installed package, "unknown" where there is none."""
    if package == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

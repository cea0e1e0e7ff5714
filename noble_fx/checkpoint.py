"""Save and load: a folder with `model.safetensors` and `noble_config.json`.

`load` takes a plain model, transforms it as the folder says, and fills it. Everything is compared first, from the
file's header and the shapes that the transform would make, so a folder that does not fit changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from noble_fx.attach.attach import branch_paths, named_branches
from noble_fx.attach.restore import restored_on_error
from noble_fx.branches.kinds import branch_class
from noble_fx.captures.base import Examples, Plan
from noble_fx.captures.example_inputs import rebuild
from noble_fx.captures.table import capture_of
from noble_fx.config import NobleConfig
from noble_fx.errors import CheckpointError, ConfigError
from noble_fx.files import staged
from noble_fx.inspect import sites
from noble_fx.sites.site import Site
from noble_fx.transform import apply_plan, make_plan

WEIGHTS, CONFIG = "model.safetensors", "noble_config.json"
_FORMAT = 1


def save(model: nn.Module, folder: str | Path, overwrite: bool = False) -> Path:
    """Write all weights and the config to a new folder; returns it. Nothing half-written is ever left there.

    Raises `CheckpointError` for an existing or unwritable path, and where the config holds a callable.
    """
    folder = Path(folder)
    branches = named_branches(model)
    if not branches:
        raise CheckpointError("the model carries no branches; save a plain model with torch or safetensors")
    if any(branch.folded for branch in branches.values()):
        raise CheckpointError(
            "the model is folded for inference and no plain model can be made into it; save the one it was folded from"
        )
    if any(t.is_meta for t in model.state_dict().values()):
        raise CheckpointError("the model is on the meta device and has no values to save")
    try:
        config = next(iter(branches.values())).config.to_dict()
    except ConfigError as error:
        raise CheckpointError(f"cannot save this model: {error}") from None
    with staged(folder, CheckpointError, overwrite) as work:
        made = work / folder.name
        made.mkdir()
        save_model(model, str(made / WEIGHTS))
        described = {
            "format": _FORMAT,
            "config": config,
            "sites": [site.to_dict() for site in sites(model) if site.selected],
            "versions": {"torch": torch.__version__},
        }
        if (capture := capture_of(model)) is not None and (inputs := capture.inputs(model)) is not None:
            described["inputs"] = inputs
        (made / CONFIG).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (made / WEIGHTS).chmod((made / CONFIG).stat().st_mode)  # safetensors writes files for their owner alone
    return folder


def load(
    model: nn.Module,
    folder: str | Path,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> nn.Module:
    """Transform the plain `model` as `folder` says and fill it with the folder's weights; returns the result.

    A model that was captured by export is exported again, with inputs like those it was first exported with. Example
    inputs, as in `transform`, are needed only where those were of a class that a file cannot hold, or to change sizes.

    Raises `CheckpointError` that names the missing, unexpected or misshapen keys, or the file that cannot be read;
    the model is then as it was.
    """
    folder = Path(folder)
    config, inputs = _read_config(folder)
    stored = _read_header(folder / WEIGHTS)
    if any(t.is_meta for t in model.state_dict().values()):
        raise CheckpointError("the model is on the meta device; call model.to_empty(device=...) before load")
    examples = Examples.of(example_inputs, example_kwargs, dynamic_shapes)
    if inputs is not None and not examples:
        examples = Examples.of(None, *_rebuilt_inputs(model, inputs, folder))
    try:
        plan = make_plan(model, config, examples)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG} does not fit this model: {error}") from error
    _compare(model, plan, stored, folder)
    with restored_on_error(model) as before:
        before.keep((*model.parameters(), *model.buffers()))
        result = apply_plan(model, plan)
        try:
            load_model(result, str(folder / WEIGHTS))
        except Exception as error:
            raise CheckpointError(f"{folder / WEIGHTS} could not be read into the model: {error}") from error
    return result


def _rebuilt_inputs(model: nn.Module, inputs: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return rebuild(inputs, next((p.device for p in model.parameters()), torch.device("cpu")))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not a config of noble_fx.save: inputs: {error}") from error


def _read_config(folder: Path) -> tuple[NobleConfig, Any]:
    path = folder / CONFIG
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if described["format"] != _FORMAT:
            raise CheckpointError(
                f"{path} has format {described['format']}; this version reads {_FORMAT}: update noble_fx"
            )
        return NobleConfig.from_dict(described["config"]), described.get("inputs")
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a folder made by noble_fx.save has one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path} is not a config of noble_fx.save: {error}") from error


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a folder made by noble_fx.save has one") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}); save the model again") from None


def _expected(model: nn.Module, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state_dict that the planned model will have."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for site in plan.selected:
        saved = _saved_shapes(site, plan)
        for path in _branch_names(site):
            shapes |= {f"{path}.{name}": shape for name, shape in saved.items()}
    return shapes


def _compare(model: nn.Module, plan: Plan, stored: dict[str, tuple[int, ...]], folder: Path) -> None:
    expected = _expected(model, plan)
    groups = _shared_names(model, plan)
    wrong = [
        f"{name} is {list(stored[name])} in the file and {list(shape)} in the model"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    unexpected = [f"{name} is not in the model" for name in stored if name not in expected]
    # A tensor with several names is stored once, under any of them.
    missing = [
        f"{name} is not in the file" for name in expected if not any(n in stored for n in groups.get(name, (name,)))
    ]
    problems = [*wrong, *unexpected, *missing]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{folder} does not fit this model: {'; '.join(problems[:5])}{more}. Build the model with the settings it "
            "was saved with"
        )


def _shared_names(model: nn.Module, plan: Plan) -> dict[str, list[str]]:
    """For every tensor with several names in the planned model: all of them, by each."""
    by_tensor: dict[int, list[str]] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        by_tensor.setdefault(id(tensor), []).append(name)
    groups = {name: names for names in by_tensor.values() for name in names}
    for site in plan.selected:
        if site.aliases and not site.weight:
            for name in _saved_shapes(site, plan):
                names = [f"{path}.{name}" for path in _branch_names(site)]
                groups |= dict.fromkeys(names, names)
    return groups


def _saved_shapes(site: Site, plan: Plan) -> dict[str, tuple[int, ...]]:
    return branch_class(plan.config).saved_shapes(site.in_features, site.out_features, site.rank, plan.config)


def _branch_names(site: Site) -> list[str]:
    return [*branch_paths(site), *(f"{alias}.noble" for alias in site.aliases if not site.weight)]

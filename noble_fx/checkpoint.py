"""Save and load: a folder with `model.safetensors` and `noble_config.json`.

`load` takes a plain model, transforms it as the folder says, and fills it. Everything is compared first, so a folder
that does not fit changes nothing. `checkpoints/` has the files and what they hold.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.adapters import described_adapters, told_by_adapters
from noble_fx.attach.attach import made_by, named_branches
from noble_fx.attach.bases import described_bases, put_bases
from noble_fx.attach.gone import told_gone
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import restored_on_error
from noble_fx.captures.base import Examples
from noble_fx.captures.example_inputs import rebuild
from noble_fx.captures.table import capture_of
from noble_fx.checkpoints import adapters, config_file, pretrained_files, weights_file
from noble_fx.checkpoints.config_file import CONFIG, Described
from noble_fx.checkpoints.fit import Fit, fill, kept
from noble_fx.checkpoints.gather import agreed, gathered, is_sharded, on_rank_0
from noble_fx.checkpoints.state import State, state_to_save, stored
from noble_fx.checkpoints.weights_file import WEIGHTS, Stored
from noble_fx.config import BASE_SETTINGS, NobleConfig
from noble_fx.errors import CheckpointError, ConfigError, NobleError, check_flag, printable
from noble_fx.files import as_path, staged
from noble_fx.inspect import sites
from noble_fx.sites.site import Site
from noble_fx.transform import apply_plan, given_examples, make_plan
from noble_fx.wrappers import own_name, unwrapped, wrapper


def save(model: nn.Module, folder: str | Path, overwrite: bool = False) -> Path:
    """Write all weights and the config to a new folder; returns it. Nothing half-written is ever left there.

    What wraps the model (torch.compile, DistributedDataParallel, DataParallel, AveragedModel, …) is left out: `load`
    takes the plain model. A sharded model (FSDP, tensor parallel) is saved by all ranks: each calls this, rank 0
    writes, and all return or raise together; any other model is saved by whoever calls. `overwrite` replaces a folder
    that `save` made and that holds nothing else; until the new one is whole, the old one stays. Of a Hugging Face model
    its configs are written too, and tokenizer files of a folder that is replaced are kept: `from_pretrained` reads it.

    Raises `CheckpointError` for an existing or unwritable path, and for what a file cannot hold: a callable in the
    config, a layer parametrized since, tensor classes other than torch's own.
    """
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"noble_fx.save takes an nn.Module, not {type(model).__name__}")
    check_flag("overwrite", overwrite, CheckpointError)
    ranks = is_sharded(model)
    whole, model = model, unwrapped(model)
    together = partial(agreed, ranks) if ranks else nullcontext  # alone, nothing comes after the last rename
    with together():
        folder = _as_folder(folder)
        described = _described(model)
    state = gathered(whole) if ranks else {}
    with together():
        if not ranks:
            _write(folder, overwrite, model, state_to_save(model), described)
        elif on_rank_0():
            _write(folder, overwrite, model, stored(model, state, gathered=True), described)
    return folder


def _described(model: nn.Module) -> dict[str, Any]:
    """What the config file will say, without the weights' extra state."""
    branches = named_branches(model)
    if gone := told_gone(model):
        raise CheckpointError(f"load would ask for all branches of the settings, and {gone}")
    bases = described_bases(model)
    if not branches and not bases:
        raise CheckpointError("the model carries no branches; save a plain model with torch or safetensors")
    if any(branch.folded for branch in branches.values()):
        raise CheckpointError(
            "the model is folded for inference and no plain model can be made into it; save the one it was folded from"
        )
    try:
        config = made_by(branches.values()).to_dict() if branches and not told_by_adapters(model) else None
    except ConfigError as error:
        raise CheckpointError(f"cannot save this model: {error}") from None
    capture = capture_of(model)
    return {
        "config": config,
        "sites": [_own_names(site, model) for site in sites(model) if site.selected or site.base],
        "inputs": capture.inputs(model) if capture is not None else None,
        "bases": bases,
        "adapters": described_adapters(model),
    }


def _write(folder: Path, overwrite: bool, model: nn.Module, state: State, described: dict[str, Any]) -> None:
    place = Path(os.path.realpath(folder))  # behind a link, which stays
    known = (WEIGHTS, CONFIG, *pretrained_files.known(model))
    with staged(place, CheckpointError, overwrite, partial(_stranger, known)) as work:
        made = work / place.name
        made.mkdir()
        weights_file.write(state, made / WEIGHTS)
        config_file.write(made / CONFIG, extra=state.extra, **described)
        pretrained_files.write(model, made, place)
        (made / WEIGHTS).chmod((made / CONFIG).stat().st_mode)  # safetensors writes files for their owner alone


def _as_folder(path: str | Path) -> Path:
    folder = as_path(path, CheckpointError)
    try:
        str(folder).encode()
        os.path.realpath(folder)
    except UnicodeEncodeError:
        raise CheckpointError(f"{printable(folder)} is no UTF-8, and safetensors asks for that; rename it") from None
    except ValueError as error:  # a NUL
        raise CheckpointError(f"{printable(folder)} is no path: {error}") from None
    return folder


def _stranger(known: tuple[str, ...], folder: Path) -> str:
    """What is in a folder and is not of a saved model, by name; "" where nothing is."""
    entries = {entry.name: entry for entry in sorted(folder.iterdir())}
    for name, entry in entries.items():
        if name not in known or not entry.is_file():
            return f"{printable(name)}, which noble_fx.save did not write,"
    return f"{WEIGHTS} without a {CONFIG}" if entries and CONFIG not in entries else ""


def _own_names(site: Site, model: nn.Module) -> dict[str, Any]:
    names = {"fqn": own_name(site.fqn, model), "weight": own_name(site.weight, model)}
    return {**site.to_dict(), **names, "aliases": [own_name(alias, model) for alias in site.aliases]}


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
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"noble_fx.load takes an nn.Module, not {type(model).__name__}")
    folder = _as_folder(folder)
    described = config_file.read(folder)
    stored = weights_file.read_header(folder)
    _check_loadable(model)
    examples = given_examples(example_inputs, example_kwargs, dynamic_shapes)
    if described.inputs is not None and not examples:
        examples = Examples.of(None, *_rebuilt_inputs(model, described.inputs, folder))
    with restored_on_error(model):
        return _loaded(model, folder, described, stored, examples)


def _loaded(
    model: nn.Module, folder: Path, described: Described, stored: dict[str, Stored], examples: Examples
) -> nn.Module:
    """The model with the bases and branches of the folder, filled."""
    try:
        put_bases(model, described.bases)
        plan = None
        if described.config is not None:
            config = described.config.without_base()  # the file says what each base is
            plan = make_plan(model, config, examples, advise=False)  # the settings are the folder's
        fit = Fit(model, plan, printable(folder), adapters.expected_tensors(model, described.adapters))
    except NobleError as error:
        raise CheckpointError(f"{printable(folder / CONFIG)} does not fit this model: {error}") from error
    fit.check_header(stored, described.extra)
    values = weights_file.read(folder)
    fit.check_values(values)
    with kept(model):
        result = model if plan is None else apply_plan(model, plan)
        _tell_base(result, described.config)
        adapters.put_described(result, described.adapters)
        try:
            fill(result, fit, {**described.extra, **values})
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{printable(folder / WEIGHTS)} could not be read into the model: {reason}"
            ) from error
    return result


def _tell_base(model: nn.Module, config: NobleConfig | None) -> None:
    """Let the branches say again by which settings the bases beside them were made."""
    if config is not None and config.base is not None:
        told = {name: getattr(config, name) for name in BASE_SETTINGS}
        for branch in named_branches(model).values():
            branch.config = branch.config.replace(**told)
        note(model)


def _check_loadable(model: nn.Module) -> None:
    if around := wrapper(model):
        raise CheckpointError(
            f"the model is wrapped or sharded already ({around}); load into the plain model and wrap what comes back"
        )
    state = model.state_dict()
    if any(isinstance(value, Tensor) and value.is_meta for value in state.values()):
        raise CheckpointError("the model is on the meta device; call model.to_empty(device=...) before load")
    for name, value in state.items():
        if isinstance(value, Tensor) and type(value) not in (Tensor, nn.Parameter):
            raise CheckpointError(
                f"{printable(name)} is a {type(value).__name__}, which a file cannot be read into; load into the plain "
                "model, then shard or quantize what comes back"
            )


def _rebuilt_inputs(model: nn.Module, inputs: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return rebuild(inputs, next((p.device for p in model.parameters()), torch.device("cpu")))
    except Exception as error:  # whatever torch has against such sizes
        raise CheckpointError(
            f"{printable(folder / CONFIG)} is not a config of noble_fx.save: inputs: {printable(error):.200}"
        ) from error

"""The verbs on a model: transform, disabled, remove, reset_branches.

`transform` decides everything first and changes the model last, so an error leaves it as it was.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.adapters import freeze, named_adapters, thaw
from noble_fx.attach.attach import attach, carriers, detach, named_branches
from noble_fx.attach.bases import build_bases, named_bases, put_base
from noble_fx.attach.draw import base_tensors, build_branches, draw_base
from noble_fx.attach.fast_path import keep_from_fast_path as keep_from_fast_path
from noble_fx.attach.gone import forget_choice, made_choice, note_choice
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import Before, restored_on_error, unchanged
from noble_fx.attach.switched_off import is_off, switched_off, without_branch
from noble_fx.attach.unwrapped import check_unwrapped, same_on_every_rank
from noble_fx.bases.base import Base
from noble_fx.bases.kinds import check_base
from noble_fx.branches.base import Branch
from noble_fx.branches.drawing import drawing
from noble_fx.branches.kinds import check_branch
from noble_fx.captures import dynamo
from noble_fx.captures.advice import advised
from noble_fx.captures.base import Examples, Plan, check_model
from noble_fx.captures.table import asked, captured
from noble_fx.config import NobleConfig
from noble_fx.errors import CaptureError, ConfigError, NobleError, Refusal, check_flag, shown
from noble_fx.ops.available import why_no_kernel
from noble_fx.sites.site import Site
from noble_fx.stacking import plan_beside, put_beside_all, stacks
from noble_fx.torch_versions import forget_compiled
from noble_fx.wrappers import own_name


def transform(
    model: nn.Module,
    rank: Any = None,
    act: Any = None,
    *,
    config: NobleConfig | None = None,
    dry_run: bool = False,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **settings: Any,
) -> Any:
    """Add a NOBLE branch to the chosen linear layers; returns the rewritten module, which shares all base parameters.

    With `scope="block"` there is one around each chosen block instead; `branch="lora"` is a linear map in its place, or
    beside the branches of a model that has some. Layers are augmented in place: what comes back
    is `model` itself. Keyword arguments are the fields of `NobleConfig` and override `config`. With `dry_run` nothing
    changes and the tuple of `Site`s is returned.
    `example_inputs` (positional) and `example_kwargs` are what `capture="export"` runs the model on; batch and
    sequence sizes stay dynamic unless `dynamic_shapes`, in torch.export's form, says else.
    Raises `ConfigError` or `CaptureError`, each with the remedy; the model is then as it was.
    """
    settings |= {name: value for name, value in (("rank", rank), ("act", act)) if value is not None}
    check_flag("dry_run", dry_run, ConfigError)
    examples = given_examples(example_inputs, example_kwargs, dynamic_shapes)
    plan = make_plan(model, NobleConfig.of(config, settings), examples)
    return plan.sites if dry_run else apply_plan(model, plan)


def given_examples(args: Any, kwargs: Any, dynamic_shapes: Any) -> Examples:
    """What a user gave to run the model on; raises `ConfigError` for what holds no inputs."""
    if not (args is None or isinstance(args, Tensor | list | tuple)):
        raise ConfigError(f"example_inputs={shown(args)} must be a tensor, or a tuple or list of inputs")
    if not (kwargs is None or (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs))):
        raise ConfigError(f"example_kwargs={shown(kwargs)} must be a dictionary {{argument: input}}")
    return Examples.of(args, None if kwargs is None else dict(kwargs), dynamic_shapes)


def make_plan(model: nn.Module, config: NobleConfig, examples: Examples | None = None, advise: bool = True) -> Plan:
    """Capture, find and choose without changing anything; raises what `transform` raises.

    `advise`: a refusal says which other settings work, for a caller who can pass others.
    """
    check_model(model)
    check_unwrapped(model, "transform")
    carried = next((fqn for fqn, m in model.named_modules() if isinstance(m, Branch)), None)
    if carried is not None and stacks(config):
        with unchanged(model):
            return plan_beside(model, config, examples or Examples())
    if carried is not None:
        raise ConfigError(
            f"the model already carries branches (first: {carried!r}); take them out with noble_fx.remove(model), "
            "or transform a fresh model"
        )
    check_branch(config)  # an unknown kind, an unknown or ill-shaped σ is refused first
    check_base(config)
    examples = examples or Examples()
    with unchanged(model):
        try:
            plan = _asked_plan(model, config, examples)
        except NobleError as error:
            if not error.dead_end or not advise:
                raise
            raise advised(error, model, config, examples) from None
    check_unwrapped(model, "transform", [site.weight or site.fqn for site in plan.selected])
    return plan


def _asked_plan(model: nn.Module, config: NobleConfig, examples: Examples) -> Plan:
    refusals = []
    for name, capture in asked(config.capture):
        if examples and not capture.takes_examples:
            raise ConfigError(
                f"example inputs are for capture='export', and capture={config.capture!r} runs no model to look at it "
                "(noble_fx.programs(model, *inputs) shows graphs)"
            ).leading_nowhere()
        if config.base is not None and not capture.calls_layers:
            raise ConfigError(
                f"base={config.base!r} gives layers another form of W, and the graphs of capture={config.capture!r} "
                "read W itself; use capture='modules' or 'fx'"
            ).leading_nowhere()
        answer = capture.plan(model, config, examples)
        if isinstance(answer, Plan):
            return dataclasses.replace(answer, config=answer.config.replace(capture=name))
        if not isinstance(answer, Refusal):
            raise CaptureError(
                f"capture {name!r}: {type(capture).__qualname__}.plan answered {answer!r}, which is neither a Plan nor "
                "a Refusal(reason)"
            )
        refusals.append(f"capture={name!r} declines this model: {answer.reason}")
    raise CaptureError("; ".join(refusals)).leading_nowhere()


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Build all branches, then put them in; on whatever is raised, an interrupt included, the model is as it was."""
    if named_branches(model):
        return put_beside_all(model, plan)
    dynamo.register()
    branches = {site.fqn: build_branches(model, site, plan.config) for site in plan.selected}
    bases = build_bases(model, plan.selected, plan.config)
    choice = made_choice(model, plan.sites)
    for site_branches in branches.values():
        for branch in site_branches:
            branch.choice = choice
    if plan.config.fuse == "require":
        require_kernels(branches)
    forget_compiled()
    with restored_on_error(model) as before:
        result = _put_in(model, plan, branches, bases, before)
        note_choice(result, choice)
        if named_adapters(result):
            freeze(result)
    return result


def _put_in(
    model: nn.Module, plan: Plan, branches: dict[str, list[Branch]], bases: dict[str, Base], before: Before
) -> nn.Module:
    name, capture = next(asked(plan.config.capture))
    for site in plan.selected:
        attach(model, site, branches[site.fqn])
    for fqn, base in bases.items():
        put_base(model, fqn, base)
    keep_from_fast_path(model)
    result = capture.build(model, plan)
    if not isinstance(result, nn.Module):
        raise CaptureError(f"capture {name!r}: {type(capture).__qualname__}.build answered {result!r}, no module")
    if plan.config.init_base:
        for site in plan.selected:
            before.keep(base_tensors(model, site))
            draw_base(model, site, plan.config)
    note(model)
    return result


def require_kernels(branches: dict[str, list[Branch]]) -> None:
    """What fuse="require" asks for of branches, by the names of their sites; raises `ConfigError`."""
    for fqn, site_branches in branches.items():
        for branch in site_branches:
            if reason := branch.unfused or why_no_kernel(branch.key, branch.width, branch.dtype):
                raise ConfigError(
                    f"fuse='require': {fqn!r} would have no generated kernels on a GPU: {reason}. Choose another act, "
                    f"rank or dtype, leave the layer out with exclude={re.escape(fqn)!r}, or pass fuse=True"
                )


def _take_out(model: nn.Module) -> None:
    for capture, module in captured(model):
        capture.remove(module)
    for module in list(carriers(model)):
        detach(module)
    keep_from_fast_path(model)


# --- on a transformed model -----------------------------------------------------------------------------------------


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the branches are off: the base model exactly, its own operators and no others; in every thread."""
    with ExitStack() as stack:
        for branch in named_branches(model).values():
            stack.enter_context(switched_off(branch, partial(without_branch, branch)))
        for capture, module in captured(model):
            stack.enter_context(switched_off(module, partial(capture.disabled, module)))
        yield model


def remove(model: nn.Module) -> nn.Module:
    """Take all branches out again, in place; base weights are untouched.

    Raises `ConfigError` if there are none, and inside `disabled`, which could not put back what it set aside.
    """
    branches = named_branches(model)
    if not branches and forget_choice(model):  # another tool has taken them along; the user takes note of it
        return model
    if not branches:
        raise ConfigError("the model carries no branches, so there is nothing to remove")
    if any(map(is_off, branches.values())):
        raise ConfigError("the model is inside noble_fx.disabled(model); leave that, then remove")
    check_unwrapped(model, "remove", (fqn for fqn, module in model.named_modules() if isinstance(module, Branch)))
    forget_compiled()
    with restored_on_error(model):
        _take_out(model)
        forget_choice(model)
        note(model)
        thaw(model)
    return model


def reset_branches(model: nn.Module) -> nn.Module:
    """Draw every branch again as `transform` would, seeds included: what a model needs after meta → `to_empty`.

    Of a model that is sharded by FSDP2 or a parallel plan every rank must call it. Raises `ConfigError` where a branch
    is folded or lies in an FSDP1 wrapper, and without a seed inside DDP, whose ranks would draw branches of their own.
    """
    branches = named_branches(model)
    for fqn, branch in branches.items():
        if branch.config.seed is None and same_on_every_rank(model, fqn):
            raise ConfigError(
                f"the branch at {own_name(fqn, model)!r} has no seed, so every rank of DDP would draw another one; "
                "reset the branches before wrapping, or transform with a seed"
            )
    with restored_on_error(model) as before, torch.no_grad():
        before.keep(tensor for b in branches.values() for tensor in (*b.parameters(), *b.buffers()))
        for fqn, branch in branches.items():
            branch.drawn_as = own_name(fqn, model)
            with drawing(branch.config, branch.drawn_as):
                branch.redraw()
    return model


def reset_parameters(model: nn.Module) -> nn.Module:
    """Draw again all that `transform` drew: every branch, and with init_base=True the weights beside them.

    So is a W of another form that was made on the meta device, where there was no W to take it from.
    What a model needs after meta → shard → `to_empty`, once its own weights are initialised: the values are those of
    the unsharded model. Raises what `reset_branches` raises.
    """
    branches = named_branches(model)
    if not branches:
        raise ConfigError("the model carries no branches, so there is nothing that transform drew")
    if any(parameter.is_meta for branch in branches.values() for parameter in branch.parameters()):
        raise ConfigError("the model is on the meta device; call model.to_empty(device=...) before reset_parameters")
    with restored_on_error(model) as before:
        reset_branches(model)
        for site, config in _drawn_with_their_base(model):
            before.keep(base_tensors(model, site))
            draw_base(model, site, config)
    return model


def _drawn_with_their_base(model: nn.Module) -> list[tuple[Site, NobleConfig]]:
    """The sites whose weight was drawn, or has no values yet, by the names that they have in `model` today."""
    found = {}
    lacking = {fqn for fqn, base in named_bases(model).items() if base.lacks_values}
    for fqn, branch in named_branches(model).items():
        site = branch.site
        if site is not None and (branch.config.init_base or fqn in lacking):
            weight = fqn.rpartition(".")[0] if site.experts else fqn
            here = dataclasses.replace(site, weight=weight) if site.weight else dataclasses.replace(site, fqn=fqn)
            found[weight] = here, branch.config
    return list(found.values())

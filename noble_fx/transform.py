"""The verbs on a model: transform, sites, programs, disabled, remove.

`transform` decides everything first and changes the model last, so an error leaves it as it was.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from noble_fx import activations, dataflow
from noble_fx.branch import Augmented, NobleBranch
from noble_fx.capture import CapturedModel, Declined, check_model, trace, unreachable
from noble_fx.codegen.trace_activation import why_untraceable
from noble_fx.config import NobleConfig
from noble_fx.errors import CaptureError, ConfigError
from noble_fx.layers import augmented_class, plain_class
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.program import Program, Site, Step
from noble_fx.runtime import operator as _operator  # noqa: F401 - registers noble_fx::linear
from noble_fx.select import choose, find_maps

_META = "noble_fx"


@dataclass(frozen=True)
class Plan:
    """What a transform will do: the sites, the graph if there is one, and why there is none."""

    config: NobleConfig
    sites: tuple[Site, ...]
    graph: fx.Graph | None
    declined: str

    @property
    def selected(self) -> list[Site]:
        """The sites that get a branch."""
        return [site for site in self.sites if site.selected]


def transform(
    model: nn.Module,
    rank: Any = None,
    act: Any = None,
    *,
    config: NobleConfig | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> Any:
    """Add a NOBLE branch to the chosen linear layers; returns the rewritten module, which shares all base parameters.

    Layers are augmented in place: `model` itself has the branches afterwards. Keyword arguments are the fields of
    `NobleConfig` and override `config`. With `dry_run` nothing changes and the tuple of `Site`s is returned.
    Raises `ConfigError` or `CaptureError`, each with the remedy; the model is then as it was.
    """
    settings |= {name: value for name, value in (("rank", rank), ("act", act)) if value is not None}
    plan = make_plan(model, (config or NobleConfig()).replace(**settings))
    if dry_run:
        return plan.sites
    return apply_plan(model, plan)


def make_plan(model: nn.Module, config: NobleConfig) -> Plan:
    """Capture, find and choose without changing anything; raises what `transform` raises."""
    check_model(model)
    carried = next((fqn for fqn, m in model.named_modules() if isinstance(m, NobleBranch)), None)
    if carried is not None:
        raise ConfigError(
            f"the model already carries branches (first: {carried!r}); take them out with noble_fx.remove(model), "
            "or transform a fresh model"
        )
    if config.capture == "export":
        raise CaptureError("capture='export' is not part of this version; use 'fx', 'modules' or 'auto'")
    with torch.device("meta"):
        activations.build_activation(config.act, 4, config.recipe)  # an unknown or ill-shaped σ is refused first
    graph, declined = _try_trace(model)
    sites = choose(model, find_maps(model, dataflow.roles_from_graph(model, graph) if graph else None), config)
    if graph is not None and not declined:
        declined = unreachable(graph, model, [site.fqn for site in sites if site.selected])
    if config.capture == "fx" and declined:
        raise CaptureError(f"capture='fx' declines this model: {declined}; use capture='modules' or 'auto'")
    if config.capture == "modules" or declined:
        graph = None
    elsewhere = "capture='modules' was asked for" if config.capture == "modules" else declined
    return Plan(config.replace(capture="fx" if graph else "modules"), sites, graph, elsewhere)


def _try_trace(model: nn.Module) -> tuple[fx.Graph | None, str]:
    try:
        return trace(model), ""
    except Declined as reason:
        return None, str(reason)


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Build all branches, then put them in; on any failure the layers are put back."""
    branches = {site.fqn: _build_branch(model.get_submodule(site.fqn), site, plan) for site in plan.selected}
    swapped: list[nn.Module] = []
    try:
        for fqn, branch in branches.items():
            layer = model.get_submodule(fqn)
            _augment(layer, branch)
            swapped.append(layer)
        _keep_from_fast_path(model)
        result = model if plan.graph is None else _captured(model, plan.graph)
    except Exception:
        for layer in swapped:
            _restore(layer)
        raise
    if plan.config.init_base:
        for fqn in branches:
            _draw_base(model.get_submodule(fqn), fqn, plan.config)
    return result


@contextmanager
def _drawing(config: NobleConfig, fqn: str) -> Iterator[None]:
    """Random state for one layer: with a seed it depends on the layer's name alone, not on order or selection."""
    if config.seed is None:
        yield
        return
    digest = hashlib.sha256(f"{config.seed}:{fqn}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield


def _build_branch(layer: nn.Module, site: Site, plan: Plan) -> NobleBranch:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    # Drawn on the CPU in float32, so that a seed means the same branch on every device and in every dtype.
    with _drawing(plan.config, site.fqn), torch.device("meta" if weight.is_meta else "cpu"):
        branch = NobleBranch(site.in_features, site.out_features, site.rank, plan.config, site.role)
    branch.reason, branch.declined = site.reason, plan.declined
    branch.unfused = why_untraceable(branch.key, site.rank) if plan.config.fuse else "fuse=False"
    branch.to(device=weight.device, dtype=weight.dtype)
    return branch.train(layer.training)


def _augment(layer: nn.Module, branch: NobleBranch) -> None:
    kind = augmented_class(layer)
    assert kind is not None
    assert issubclass(kind, nn.Module)
    # The object stays the same one, so hooks, optimizers and every other reference to the layer keep working.
    layer.__class__ = kind
    layer.noble = branch


def _restore(layer: nn.Module) -> None:
    layer.__class__ = plain_class(layer)
    del layer.noble


def _keep_from_fast_path(model: nn.Module) -> None:
    """nn.TransformerEncoderLayer's inference fast path reads the weights of its linears past their forward."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            augmented = any(isinstance(part, Augmented) for part in module.modules())
            # The layer's own flag: 1 and 2 allow the fast path for that activation, 0 keeps to the layer's Python code.
            allowed = {nn.functional.relu: 1, nn.ReLU: 1, nn.functional.gelu: 2, nn.GELU: 2}
            kind = module.activation if module.activation in allowed else type(module.activation)
            module.activation_relu_or_gelu = 0 if augmented else allowed.get(kind, 0)


def _draw_base(layer: nn.Module, fqn: str, config: NobleConfig) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, torch.Tensor)
    if weight.is_meta:
        return
    noble = layer.noble
    assert isinstance(noble, NobleBranch)
    with torch.no_grad(), _drawing(config, f"{fqn}.weight"):
        drawn = torch.randn(weight.shape) * config.recipe.base_gain * noble.in_features**-0.5
        weight.copy_(drawn)
        if isinstance(bias, torch.Tensor):
            bias.zero_()


def _captured(model: nn.Module, graph: fx.Graph) -> CapturedModel:
    captured = CapturedModel(model, graph, type(model).__name__)
    captured.meta[_META] = tuple(run_passes(captured, PIPELINES["train"]))
    return captured


# --- looking at a model ----------------------------------------------------------------------------------------------


def named_branches(model: nn.Module) -> dict[str, NobleBranch]:
    """Every branch of a model by the name of its layer, each once."""
    return {fqn: m.noble for fqn, m in model.named_modules() if isinstance(m, Augmented) and hasattr(m, "noble")}


def sites(model: nn.Module, config: NobleConfig | None = None, **settings: Any) -> tuple[Site, ...]:
    """Every linear map found in `model`, chosen or not, with the reason; never raises for an unsuitable one.

    On a transformed model, what it carries; on a plain one, what `transform` with these settings would choose.
    """
    branches = named_branches(model)
    if not branches:
        check_model(model)
        graph, _ = _try_trace(model)
        maps = find_maps(model, dataflow.roles_from_graph(model, graph) if graph else None)
        return choose(model, maps, (config or NobleConfig()).replace(**settings), strict=False)
    maps = find_maps(model)
    try:
        found = choose(model, maps, next(iter(branches.values())).config, strict=False)
    except ConfigError:  # the config names layers by their place in a larger model, of which this is a part
        found = tuple(linear_map.site for linear_map in maps)
    return tuple(_carried(m.module, site) for m, site in zip(maps, found, strict=True))


def _carried(layer: nn.Module | None, site: Site) -> Site:
    """`site` as the layer really is, whatever its model's config would choose today."""
    branch = getattr(layer, "noble", None)
    if not isinstance(branch, NobleBranch):
        return replace(site, selected=False, rank=0, params=0, reason=site.reason if not site.selected else "")
    params = sum(p.numel() for p in branch.parameters())
    return replace(
        site,
        role=branch.role,
        rank=branch.rank,
        selected=True,
        reason=branch.reason,
        params=params,
        unfused=branch.unfused,
    )


def programs(model: nn.Module) -> tuple[Program, ...]:
    """The captured graphs inside `model` with the history of their passes; none where its own forward runs."""
    return tuple(
        Program(module, sites(module), module.meta[_META])
        for module in model.modules()
        if isinstance(module, CapturedModel) and _META in module.meta
    )


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the branches are off: the base model exactly, its own operators and no others."""
    branches = list(named_branches(model).values())
    before = [branch.enabled for branch in branches]
    graphs = [(m, m.graph) for m in model.modules() if isinstance(m, CapturedModel)]
    for branch in branches:
        branch.enabled = False
    for module, graph in graphs:
        module.graph = copy.deepcopy(graph)
        run_passes(module, PIPELINES["base"])
    try:
        yield model
    finally:
        for module, graph in graphs:
            module.graph = graph
        for branch, enabled in zip(branches, before, strict=True):
            branch.enabled = enabled


def remove(model: nn.Module) -> nn.Module:
    """Take all branches out again, in place; base weights are untouched. Raises `ConfigError` if there are none."""
    layers = [module for module in model.modules() if isinstance(module, Augmented)]
    if not layers:
        raise ConfigError("the model carries no branches, so there is nothing to remove")
    for module in model.modules():
        if isinstance(module, CapturedModel):
            steps: list[Step] = run_passes(module, PIPELINES["base"])
            module.meta[_META] = (*module.meta.get(_META, ()), *steps)
    for layer in layers:
        _restore(layer)
    _keep_from_fast_path(model)
    return model


def reset_branches(model: nn.Module) -> nn.Module:
    """Draw every branch again as `transform` would, seeds included: what a model needs after meta → `to_empty`."""
    for fqn, branch in named_branches(model).items():
        with torch.no_grad(), _drawing(branch.config, fqn):
            fresh = NobleBranch(branch.in_features, branch.out_features, branch.rank, branch.config, branch.role)
            for name, drawn in fresh.state_dict().items():
                branch.state_dict()[name].copy_(drawn)
    return model

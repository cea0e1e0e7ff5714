"""The verbs on a model: transform, sites, programs, disabled, remove.

`transform` decides everything first and changes the model last, so an error leaves it as it was.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from noble_fx.attach.attach import attach, carriers, detach, named_branches
from noble_fx.attach.draw import build_branches, draw_base, drawing
from noble_fx.branches.base import Branch
from noble_fx.branches.kinds import check_branch
from noble_fx.captures import dynamo
from noble_fx.captures.base import check_model
from noble_fx.captures.call import Call
from noble_fx.captures.export import export
from noble_fx.captures.exported_model import ExportedModel, Graphs
from noble_fx.captures.fx import CapturedModel, unreachable
from noble_fx.config import NobleConfig
from noble_fx.errors import CaptureError, ConfigError
from noble_fx.inspect import HISTORY, _try_trace
from noble_fx.layers.linear import Augmented
from noble_fx.ops.cuda import why_no_kernel
from noble_fx.passes.history import Step
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.sites import roles_from_graph
from noble_fx.sites.choose import choose
from noble_fx.sites.find import find_maps
from noble_fx.sites.site import Choice, Site


@dataclass(frozen=True)
class Plan:
    """What a transform will do: the sites, the graph if there is one, and why there is none."""

    config: NobleConfig
    sites: tuple[Site, ...]
    graph: fx.Graph | None
    declined: str
    exported: tuple[Graphs, Call] | None = None

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
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **settings: Any,
) -> Any:
    """Add a NOBLE branch to the chosen linear layers; returns the rewritten module, which shares all base parameters.

    Layers are augmented in place: `model` itself has the branches afterwards. Keyword arguments are the fields of
    `NobleConfig` and override `config`. With `dry_run` nothing changes and the tuple of `Site`s is returned.
    `example_inputs` (positional) and `example_kwargs` are what `capture="export"` runs the model on; batch and
    sequence sizes stay dynamic unless `dynamic_shapes`, in torch.export's form, says else.
    Raises `ConfigError` or `CaptureError`, each with the remedy; the model is then as it was.
    """
    settings |= {name: value for name, value in (("rank", rank), ("act", act)) if value is not None}
    examples = (example_inputs, example_kwargs, dynamic_shapes)
    plan = make_plan(model, (config or NobleConfig()).replace(**settings), examples)
    if dry_run:
        return plan.sites
    return apply_plan(model, plan)


def make_plan(model: nn.Module, config: NobleConfig, examples: tuple[Any, Any, Any] = (None, None, None)) -> Plan:
    """Capture, find and choose without changing anything; raises what `transform` raises."""
    check_model(model)
    carried = next((fqn for fqn, m in model.named_modules() if isinstance(m, Branch)), None)
    if carried is not None:
        raise ConfigError(
            f"the model already carries branches (first: {carried!r}); take them out with noble_fx.remove(model), "
            "or transform a fresh model"
        )
    check_branch(config)  # an unknown kind, an unknown or ill-shaped σ is refused first
    if config.capture == "export":
        return _exported_plan(model, config, examples, "")
    graph, declined = _try_trace(model)
    given = config.capture == "auto" and (examples[0] is not None or examples[1] is not None)
    try:
        sites = choose(
            model, find_maps(model, roles_from_graph.roles_from_graph(model, graph) if graph else None), config
        )
    except ConfigError as error:
        if given:  # an export sees products that no layer of the model stands for
            return _exported_plan(model, config, examples, str(error))
        raise
    if graph is not None and not declined:
        declined = unreachable(graph, model, [_runner(model, site) for site in sites if site.selected])
    if config.capture == "fx" and declined:
        raise CaptureError(f"capture='fx' declines this model: {declined}; use capture='modules' or 'auto'")
    if given and declined:
        try:
            return _exported_plan(model, config, examples, declined)
        except CaptureError as error:
            declined = f"{declined}; {error}"
    if config.capture == "modules" or declined:
        graph = None
    elsewhere = "capture='modules' was asked for" if config.capture == "modules" else declined
    return Plan(config.replace(capture="fx" if graph else "modules"), sites, graph, elsewhere)


def _exported_plan(model: nn.Module, config: NobleConfig, examples: tuple[Any, Any, Any], declined: str) -> Plan:
    graphs, call = export(model, *examples)
    sites = choose(model, find_maps(model, graphs=list(graphs.base.values())), config)
    return Plan(config.replace(capture="export"), sites, None, declined, (graphs, call))


def _runner(model: nn.Module, site: Site) -> str:
    """The module whose call runs the site: the layer itself, or the attention that reads its weight."""
    owner = site.fqn.rpartition(".")[0]
    return owner if isinstance(model.get_submodule(owner), nn.MultiheadAttention) else site.fqn


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Build all branches, then put them in; on any failure the layers are put back."""
    dynamo.register()
    branches = {site.fqn: build_branches(model, site, plan.config) for site in plan.selected}
    choice = Choice(plan.sites)
    for branch in (one for several in branches.values() for one in several):
        branch.declined, branch.choice = plan.declined, choice
    if plan.config.fuse == "require":
        _require_kernels(branches)
    try:
        for site in plan.selected:
            attach(model, site, branches[site.fqn])
        _keep_from_fast_path(model)
        result = model
        if plan.graph is not None:
            result = _captured(model, plan.graph)
        elif plan.exported is not None:
            result = _exported(model, *plan.exported)
    except Exception:
        _detach_all(model)
        raise
    if plan.config.init_base:
        for site in plan.selected:
            draw_base(model, site, plan.config)
    return result


def _require_kernels(branches: dict[str, list[Branch]]) -> None:
    for fqn, several in branches.items():
        for branch in several:
            if reason := branch.unfused or why_no_kernel(branch.key, branch.rank, branch.dtype):
                raise ConfigError(
                    f"fuse='require': {fqn!r} would have no generated kernels on a GPU: {reason}. Choose another act, "
                    f"rank or dtype, leave the layer out with exclude={re.escape(fqn)!r}, or pass fuse=True"
                )


def _detach_all(model: nn.Module) -> None:
    for module in list(carriers(model)):
        detach(module)
    _keep_from_fast_path(model)


def _keep_from_fast_path(model: nn.Module) -> None:
    """nn.TransformerEncoderLayer's inference fast path reads the weights of its linears past their forward."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):  # it makes nested tensors for that path alone
            augmented = any(isinstance(part, Augmented) for part in module.modules())
            module.use_nested_tensor = module.enable_nested_tensor and not augmented
        if isinstance(module, nn.TransformerEncoderLayer):
            augmented = any(isinstance(part, Augmented) for part in module.modules())
            # The layer's own flag: 1 and 2 allow the fast path for that activation, 0 keeps to the layer's Python code.
            allowed = {nn.functional.relu: 1, nn.ReLU: 1, nn.functional.gelu: 2, nn.GELU: 2}
            kind = module.activation if module.activation in allowed else type(module.activation)
            module.activation_relu_or_gelu = 0 if augmented else allowed.get(kind, 0)


def _captured(model: nn.Module, graph: fx.Graph) -> CapturedModel:
    captured = CapturedModel(model, graph, type(model).__name__)
    captured.meta[HISTORY] = tuple(run_passes(captured, PIPELINES["train"]))
    return captured


def _exported(model: nn.Module, graphs: Graphs, call: Call) -> ExportedModel:
    result = ExportedModel(model, graphs, call, {mode: copy.deepcopy(graph) for mode, graph in graphs.base.items()})
    for mode, module in result.noble_modules.items():
        graphs.history[mode] = tuple(run_passes(module, PIPELINES["train"]))
    return result


# --- looking at a model ----------------------------------------------------------------------------------------------


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the branches are off: the base model exactly, its own operators and no others."""
    branches = list(named_branches(model).values())
    before = [branch.enabled for branch in branches]
    graphs = [(m, m.graph) for m in model.modules() if isinstance(m, CapturedModel)]
    exported = [(m, m.noble_modules) for m in model.modules() if isinstance(m, ExportedModel)]
    for branch in branches:
        branch.enabled = False
    for module, graph in graphs:
        module.graph = copy.deepcopy(graph)
        run_passes(module, PIPELINES["base"])
    for exported_model, _ in exported:
        exported_model.use_graphs(exported_model.noble_graphs.base)
    try:
        yield model
    finally:
        for exported_model, modules in exported:
            exported_model.noble_modules = modules
        for module, graph in graphs:
            module.graph = graph
        for branch, enabled in zip(branches, before, strict=True):
            branch.enabled = enabled


def remove(model: nn.Module) -> nn.Module:
    """Take all branches out again, in place; base weights are untouched. Raises `ConfigError` if there are none."""
    if not named_branches(model):
        raise ConfigError("the model carries no branches, so there is nothing to remove")
    for module in model.modules():
        if isinstance(module, CapturedModel):
            steps: list[Step] = run_passes(module, PIPELINES["base"])
            module.meta[HISTORY] = (*module.meta.get(HISTORY, ()), *steps)
        elif isinstance(module, ExportedModel):
            module.use_graphs(module.noble_graphs.base)
    _detach_all(model)
    return model


def reset_branches(model: nn.Module) -> nn.Module:
    """Draw every branch again as `transform` would, seeds included: what a model needs after meta → `to_empty`."""
    for fqn, branch in named_branches(model).items():
        with torch.no_grad(), drawing(branch.config, fqn):
            branch.redraw()
    return model

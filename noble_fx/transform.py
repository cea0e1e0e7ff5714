"""The verbs on a model: transform, sites, programs, disabled, remove.

`transform` decides everything first and changes the model last, so an error leaves it as it was.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from noble_fx import activations, dataflow
from noble_fx.attach import attach, branch_paths, carriers, detach, named_branches
from noble_fx.branch import Augmented, NobleBranch
from noble_fx.capture import CapturedModel, Declined, check_model, trace, unreachable
from noble_fx.capture_export import export
from noble_fx.config import NobleConfig
from noble_fx.draw import build_branches, draw_base, drawing
from noble_fx.errors import CaptureError, ConfigError
from noble_fx.exported_model import Call, ExportedModel, Graphs
from noble_fx.folded import FoldedBranch
from noble_fx.onnx_file import read_sites
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.program import Program, Site, Step
from noble_fx.runtime import dynamo_backend
from noble_fx.runtime.cuda_operator import why_no_kernel
from noble_fx.select import LinearMap, choose, find_maps

HISTORY = "noble_fx"  # where a CapturedModel keeps the history of its passes, in `meta`


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
    carried = next((fqn for fqn, m in model.named_modules() if isinstance(m, NobleBranch)), None)
    if carried is not None:
        raise ConfigError(
            f"the model already carries branches (first: {carried!r}); take them out with noble_fx.remove(model), "
            "or transform a fresh model"
        )
    with torch.device("meta"):
        activations.build_activation(config.act, 4, config.recipe)  # an unknown or ill-shaped σ is refused first
    if config.capture == "export":
        return _exported_plan(model, config, examples, "")
    graph, declined = _try_trace(model)
    given = config.capture == "auto" and (examples[0] is not None or examples[1] is not None)
    try:
        sites = choose(model, find_maps(model, dataflow.roles_from_graph(model, graph) if graph else None), config)
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


def _try_trace(model: nn.Module) -> tuple[fx.Graph | None, str]:
    try:
        return trace(model), ""
    except Declined as reason:
        return None, str(reason)


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Build all branches, then put them in; on any failure the layers are put back."""
    dynamo_backend.register()
    branches = {
        site.fqn: build_branches(model, site, plan.config, exported=plan.exported is not None) for site in plan.selected
    }
    for branch in (one for several in branches.values() for one in several):
        branch.declined = plan.declined
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


def _require_kernels(branches: dict[str, list[NobleBranch]]) -> None:
    for fqn, several in branches.items():
        for branch in several:
            if reason := branch.unfused or why_no_kernel(branch.key, branch.rank, branch.down.dtype):
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


def sites(model: nn.Module | str | Path, config: NobleConfig | None = None, **settings: Any) -> tuple[Site, ...]:
    """Every linear map found in `model`, chosen or not, with the reason; never raises for an unsuitable one.

    On a transformed model, what it carries; on a plain one, what `transform` with these settings would choose; of the
    path of an exported ONNX file, what the file says it carries (`ExportError` where it is not one).
    """
    if isinstance(model, str | Path):
        return read_sites(model)
    branches = named_branches(model)
    if not branches:
        check_model(model)
        graph, _ = _try_trace(model)
        maps = _maps(model, graph)
        return choose(model, maps, (config or NobleConfig()).replace(**settings), strict=False)
    maps = _maps(model)
    try:
        found = choose(model, maps, next(iter(branches.values())).config, strict=False)
    except ConfigError:  # the config names layers by their place in a larger model, of which this is a part
        found = tuple(linear_map.site for linear_map in maps)
    return tuple(_carried(model, site) for site in found)


def _maps(model: nn.Module, graph: fx.Graph | None = None) -> list[LinearMap]:
    exported = list(model.noble_graphs.base.values()) if isinstance(model, ExportedModel) else []
    return find_maps(model, dataflow.roles_from_graph(model, graph) if graph else None, exported)


def _carried(model: nn.Module, site: Site) -> Site:
    """`site` as it really is, whatever the model's config would choose today."""
    branches = [_module_at(model, path) for path in branch_paths(site)]
    branch = branches[0]
    if not isinstance(branch, NobleBranch):
        return replace(site, selected=False, rank=0, params=0, reason=site.reason if not site.selected else "")
    parameters = [p for one in branches if one is not None for p in one.parameters()]
    return replace(
        site,
        role=branch.role,
        rank=branch.rank,
        selected=True,
        reason=branch.reason + _bypassed(model, site.weight or f"{site.fqn}.weight", parameters),
        params=sum(p.numel() for p in parameters),
        unfused=branch.unfused,
    )


def _bypassed(model: nn.Module, weight: str, branch: list[nn.Parameter]) -> str:
    """What the gradients of the last backward say of a layer whose weight the model reads itself; mostly nothing.

    Nobody can see beforehand that a forward takes `layer.weight` instead of calling the layer (Mamba's dt_proj).
    """
    owner, _, name = weight.rpartition(".")
    held = getattr(_module_at(model, owner), "_parameters", {}).get(name)  # a parametrized weight is no parameter
    if held is None or held.grad is None or any(p.grad is not None or not p.requires_grad for p in branch):
        return ""
    return "; without effect: the last backward went past its layer, to its weight alone"


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def programs(model: nn.Module) -> tuple[Program, ...]:
    """The captured graphs inside `model` with the history of their passes; none where its own forward runs."""
    out: list[Program] = []
    for module in model.modules():
        if isinstance(module, CapturedModel) and HISTORY in module.meta:
            out.append(Program(module, sites(module), module.meta[HISTORY]))
        elif isinstance(module, ExportedModel):
            found, history = sites(module), module.noble_graphs.history
            out += [Program(graph, found, history.get(mode, ()), mode) for mode, graph in module.noble_modules.items()]
    return tuple(out + _compiled_programs(model))


def _compiled_programs(model: nn.Module) -> list[Program]:
    """The graphs that `torch.compile(backend="noble_fx")` made of the model so far."""
    branches = [branch for branch in named_branches(model).values() if isinstance(branch.down, torch.Tensor)]
    names = {id(branch.down): branch for branch in branches}
    found = sites(model) if branches else ()
    paths = {id(_module_at(model, path)): site for site in found for path in branch_paths(site)}
    out = []
    for graph in dynamo_backend.compiled_graphs([branch.down for branch in branches]):
        own = dict.fromkeys(paths[id(names[down])] for down in graph.downs if id(names.get(down)) in paths)
        out.append(Program(graph.graph_module, tuple(own), graph.history, "compiled"))
    return out


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
        if isinstance(branch, FoldedBranch):
            branch.reset_parameters()  # raises
        with torch.no_grad(), drawing(branch.config, fqn):
            fresh = NobleBranch(branch.in_features, branch.out_features, branch.rank, branch.config, branch.role)
            for name, drawn in fresh.state_dict().items():
                branch.state_dict()[name].copy_(drawn)
    return model

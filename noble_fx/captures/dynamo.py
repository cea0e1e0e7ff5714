"""`torch.compile(model, backend="noble_fx")`: Dynamo's graphs through this project's passes, then to Inductor.

    torch.compile(model, backend="noble_fx")                                   Inductor, with its own modes and options
    torch.compile(model, backend="noble_fx", options={"then": "aot_eager"})    another backend after the passes

Dynamo calls `compile_graph` once per graph: again after a graph break, and for every recompilation. Each graph that
holds a fused site is remembered for `noble_fx.programs` as long as one of its branches lives. Blocks that are compiled
one by one share a graph, of which the backend is told once: with which branches it runs shows when it is called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from noble_fx import own_code
from noble_fx.branches.base import branches_with
from noble_fx.ops.operands import Operands
from noble_fx.passes.history import History
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.schema import LINEAR, LINEAR_GROUP
from noble_fx.torch_versions import HigherOrderOperator, graph_pass, inductor

NAME = "noble_fx"


@dataclass(frozen=True)
class CompiledGraph:
    """A graph that was compiled, and the identities of the `down` matrices of the branches in it."""

    graph_module: fx.GraphModule
    history: History
    downs: tuple[int, ...]

    @property
    def groups(self) -> list[list[int]]:
        """The same identities by grouped call."""
        placeholders, calls = _placeholders(self.graph_module), _calls(self.graph_module)
        read = [down for call in calls for down in call if down in placeholders]
        identities = dict(zip(read, self.downs, strict=True))
        return [[identities[down] for down in call if down in identities] for call in calls if len(call) > 1]


_compiled = WeakIdKeyDictionary()  # a branch's D -> the graphs in which it is the first


def compile_graph(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend: run the passes of "compiled" over one of Dynamo's graphs and hand it on."""
    options = dict(options or {})
    then = options.pop("then", "inductor")
    history = History()
    for body in _with_bodies(graph_module) if _calls(graph_module) else ():
        history += run_passes(body, PIPELINES["compiled"], listed=body is graph_module)
    placeholders, calls = _placeholders(graph_module), _calls(graph_module)
    places = [placeholders.index(down) for call in calls for down in call if down in placeholders]
    kept = CompiledGraph(_copy(graph_module), history, ()) if places else None
    if then != "inductor":
        inner = torch._dynamo.lookup_backend(then) if isinstance(then, str) else then
        settings = {"mode": mode, "options": options}
        compiled: Any = inner(graph_module, list(example_inputs), **{k: v for k, v in settings.items() if v})
    else:
        key = cache_key(graph_module, [example_inputs[i] for i in places])
        compiled = _with_inductor(graph_module, example_inputs, mode, options, key)
    return compiled if kept is None else _listed(compiled, kept, places, example_inputs)


def _with_inductor(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], mode: str | None, options: dict[str, Any], key: str
) -> Any:
    parts = inductor()
    patches = {**(parts.list_mode_options(mode) if mode else {}), **options}
    hook = parts.first_pass
    patches[hook] = _cache_key_pass(key, patches.get(hook, getattr(parts.config, hook)))
    return parts.compile_fx(graph_module, list(example_inputs), config_patches=patches)


# --- Inductor's cache ------------------------------------------------------------------------------------------------


def cache_key(graph_module: fx.GraphModule, downs: Sequence[Tensor]) -> str:
    """What this project adds to Inductor's cache key: its code, the pass list, and σ and config of the branches."""
    passes = [f"{rule.name}: {rule.rewrite}" for rule in PIPELINES["compiled"]]
    nodes = [node for one in _with_bodies(graph_module) for node in one.graph.nodes]
    acts = {str(node.args[-1]) for node in nodes if node.target in (LINEAR, LINEAR_GROUP)}
    configs = {branch.config.text() for branch in branches_with(downs)}
    return hashlib.sha256("\n".join([own_code.digest(), *passes, *sorted(acts), *sorted(configs)]).encode()).hexdigest()


def _cache_key_pass(key: str, users: Any) -> Any:
    """Inductor's way to make a pass part of its cache key: an object with a `uuid`; the user's own pass runs in it."""

    def run(graph: fx.Graph) -> None:
        if users is not None:
            users(graph)

    def uuid() -> Any:
        theirs = users.uuid() if hasattr(users, "uuid") else None
        # None asks Inductor not to cache: nobody can tell when a pass without a name of its own changes.
        return key if users is None else None if theirs is None else (key, theirs)

    return graph_pass(run, uuid)


# --- the graph -------------------------------------------------------------------------------------------------------


def _placeholders(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]


def _bodies(graph_module: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.GraphModule, Sequence[Any]]]:
    """Every call of a graph inside this graph (an activation checkpoint), with that graph and the call's operands."""
    for node in graph_module.graph.nodes:
        if isinstance(node.target, HigherOrderOperator):
            for i, arg in enumerate(node.args):
                body = getattr(graph_module, str(arg.target), None) if isinstance(arg, fx.Node) else None
                if isinstance(body, fx.GraphModule) and len(_placeholders(body)) == len(node.args) - i - 1:
                    yield node, body, node.args[i + 1 :]


def _with_bodies(graph_module: fx.GraphModule) -> Iterator[fx.GraphModule]:
    yield graph_module
    for _, body, _ in _bodies(graph_module):
        yield from _with_bodies(body)


def _first(down: Any) -> Any:
    """D, or of one that is put together of a branch's and adapters' the first."""
    together = isinstance(down, fx.Node) and down.target is torch.cat and down.all_input_nodes
    return together[0] if together else down


def _calls(graph_module: fx.GraphModule) -> list[list[Any]]:
    """What each fused site or group reads as its `down` matrices, in the graph's order; None where it computes one."""
    bodies = {node: (body, operands) for node, body, operands in _bodies(graph_module)}
    calls: list[list[Any]] = []
    for node in graph_module.graph.nodes:
        if node.target in (LINEAR, LINEAR_GROUP):
            calls.append([_first(site.down) for site in Operands.of_node(node).sites])
        elif node in bodies:
            body, operands = bodies[node]
            outside = dict(zip(_placeholders(body), operands, strict=True))
            calls += [[outside.get(down) for down in call] for call in _calls(body)]
    return calls


# --- what was compiled -----------------------------------------------------------------------------------------------


def _copy(graph_module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    for node in graph.nodes:  # examples would keep the caller's tensors alive
        node.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
    root = torch.nn.Module()
    for name in ("_modules", "_parameters", "_buffers"):
        root.__dict__[name] = dict(vars(graph_module)[name])
    for name, body in root._modules.items():
        root._modules[name] = _copy(body) if isinstance(body, fx.GraphModule) else body
    return fx.GraphModule(root, graph, "CompiledGraph")


def _listed(
    compiled: Callable[..., Any], graph: CompiledGraph, downs: list[int], example_inputs: Sequence[Any]
) -> Callable[..., Any]:
    """`compiled`, which notes the branches that it is called with: the first call's are those of the examples."""
    noted = WeakIdKeyDictionary()

    def note(inputs: Sequence[Any]) -> None:
        tensors = [inputs[i] for i in downs]
        noted[tensors[0]] = True
        _compiled.setdefault(tensors[0], []).append(replace(graph, downs=tuple(map(id, tensors))))

    def run(*inputs: Any) -> Any:
        if inputs[downs[0]] not in noted:
            note(inputs)
        return compiled(*inputs)

    note(example_inputs)
    return run


def compiled_graphs(downs: Sequence[Tensor]) -> list[CompiledGraph]:
    """The graphs compiled so far that hold any of these branches, by their `down` matrices, each once."""
    wanted = set(map(id, downs))
    return [one for graphs in _compiled.values() for one in graphs if wanted & set(one.downs)]


def register() -> None:
    """Make the name "noble_fx" known to torch.compile; an installed package is found by its entry point as well."""
    if NAME not in torch._dynamo.list_backends(exclude_tags=()):
        torch._dynamo.register_backend(compile_graph, name=NAME)

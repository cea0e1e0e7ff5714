"""`torch.compile(model, backend="noble_fx")`: Dynamo's graphs through this project's passes, then to Inductor.

    torch.compile(model, backend="noble_fx")                                   Inductor, with its own modes and options
    torch.compile(model, backend="noble_fx", options={"then": "aot_eager"})    another backend after the passes

Dynamo calls `compile_graph` once per graph: again after a graph break, and for every recompilation. Each graph that
holds a `noble_fx::linear` is remembered for `noble_fx.programs` as long as one of its branches lives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.program import Step
from noble_fx.schema import LINEAR

NAME = "noble_fx"


@dataclass(frozen=True)
class CompiledGraph:
    """A graph that was compiled, and the identities of the `down` matrices of the branches in it."""

    graph_module: fx.GraphModule
    history: tuple[Step, ...]
    downs: tuple[int, ...]


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
    if any(node.target is LINEAR for node in graph_module.graph.nodes):
        history = run_passes(graph_module, PIPELINES["compiled"])
        _remember(graph_module, example_inputs, tuple(history))
    if then != "inductor":
        inner = torch._dynamo.lookup_backend(then) if isinstance(then, str) else then
        given = {"mode": mode, "options": options}
        return inner(graph_module, list(example_inputs), **{k: v for k, v in given.items() if v})
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    patches = {**(list_mode_options(mode) if mode else {}), **options}
    hook = "post_grad_custom_pre_pass"
    patches[hook] = _cache_key_pass(cache_key(graph_module), patches.get(hook))
    compiled: Any = compile_fx(graph_module, list(example_inputs), config_patches=patches)
    return compiled


def cache_key(graph_module: fx.GraphModule) -> str:
    """What the passes add to Inductor's cache key: their names and laws, and the activations in the graph."""
    passes = [f"{one.name}: {one.law}" for one in PIPELINES["compiled"]]
    acts = sorted({str(node.args[-1]) for node in graph_module.graph.nodes if node.target is LINEAR})
    return hashlib.sha256("\n".join([*passes, *acts]).encode()).hexdigest()


def _cache_key_pass(key: str, users: Any) -> Any:
    """Inductor's way to make a pass part of its cache key: an object with a `uuid`; the user's own pass runs in it."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class PassList(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            if users is not None:
                users(graph)

        def uuid(self) -> Any:
            return key if users is None else (key, users.uuid() if hasattr(users, "uuid") else None)

    return PassList()


def _remember(graph_module: fx.GraphModule, example_inputs: Sequence[Any], history: tuple[Step, ...]) -> None:
    inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    given = dict(zip(inputs, example_inputs, strict=False))
    linears = [node for node in graph_module.graph.nodes if node.target is LINEAR]
    downs = [given[node.args[3]] for node in linears if isinstance(given.get(node.args[3]), Tensor)]
    if not downs:
        return
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    for node in graph.nodes:  # examples would keep the caller's tensors alive
        node.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
    root = torch.nn.Module()
    root.__dict__.update(
        {k: dict(v) for k, v in vars(graph_module).items() if k in ("_modules", "_parameters", "_buffers")}
    )
    kept = fx.GraphModule(root, graph, "CompiledGraph")
    _compiled.setdefault(downs[0], []).append(CompiledGraph(kept, history, tuple(map(id, downs))))


def compiled_graphs(downs: Sequence[Tensor]) -> list[CompiledGraph]:
    """The graphs compiled so far that hold any of these branches, by their `down` matrices, each once."""
    wanted = set(map(id, downs))
    return [one for graphs in _compiled.values() for one in graphs if wanted & set(one.downs)]


def register() -> None:
    """Make the name "noble_fx" known to torch.compile; an installed package is found by its entry point as well."""
    if NAME not in torch._dynamo.list_backends(exclude_tags=()):
        torch._dynamo.register_backend(compile_graph, name=NAME)

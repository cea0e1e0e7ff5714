"""Capture a whole model as one fx graph, or decline with the reason. Anything doubtful is declined, never traced wrong.

Symbolic tracing runs the model's Python once with stand-ins for tensors, so it is faithful only where Python takes no
decision of its own: forward has required positional arguments alone, no code asks what an argument is or draws a
random number, train and eval mode give the same graph, and no module carries hooks that a graph would lose.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import reduce_graph_module

from noble_fx.captures.base import Declined, modes_restored

_NOT_THE_MODELS = (os.path.dirname(torch.__file__), "<frozen", "<eval_with_key>", __file__)
_STDLIB = os.path.dirname(os.__file__)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Called by the model's own code while it is traced, each of these can decide on something a graph cannot see.
_DECISIONS = {
    "isinstance": "asks for the type of a value (isinstance)",
    "is_tensor": "asks whether a value is a tensor",
    "is_grad_enabled": "asks whether gradients are on",
    "is_autocast_enabled": "asks whether autocast is on",
    "is_compiling": "asks whether it is being compiled",
    "random": "draws a random number in Python",
    "uniform": "draws a random number in Python",
    "rand": "draws a random number outside the graph",
    "randn": "draws a random number outside the graph",
    "randint": "draws a random number outside the graph",
}


class CapturedModel(fx.GraphModule):
    """A model as one fx graph over its own module tree; state_dict, deepcopy and pickle are those of the tree."""

    def __init__(self, tree: nn.Module, graph: fx.Graph, class_name: str = "CapturedModel"):
        super().__init__(tree, graph, class_name)
        # GraphModule keeps only what the graph reads, in bare containers. The model's own modules stay instead, so
        # that names, classes and unused parameters are those of the original.
        for name in ("_modules", "_parameters", "_buffers"):
            setattr(self, name, dict(getattr(tree, name)))
        self._non_persistent_buffers_set = set(tree._non_persistent_buffers_set)
        for name, value in vars(tree).items():
            if name not in vars(self) and not name.startswith("_"):
                setattr(self, name, value)
        self.training = tree.training

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedModel:
        tree = _tree(copy.deepcopy(_state(self), memo))
        result = CapturedModel(tree, copy.deepcopy(self.graph))
        result.meta = copy.deepcopy(self.meta, memo)
        memo[id(self)] = result
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (super().__reduce__(), _state(self), self.meta)


def _state(model: fx.GraphModule) -> dict[str, Any]:
    return {k: v for k, v in vars(model).items() if k not in ("_graph", "meta", "_code")}


def _tree(state: dict[str, Any]) -> nn.Module:
    tree = nn.Module()
    tree.__dict__.update(state)
    return tree


def _restore(reduced: tuple[Any, tuple[Any, ...]], state: dict[str, Any], meta: dict[str, Any]) -> CapturedModel:
    rebuild, args = reduced
    assert rebuild is reduce_graph_module
    graph: Any = rebuild(*args).graph  # GraphModule pickles its Python code and traces it again
    result = CapturedModel(_tree(state), graph)
    result.meta = meta
    return result


def trace(model: nn.Module) -> fx.Graph:
    """The one graph of `model`; raises `Declined` with the reason where it would not be faithful."""
    _check_signature(model)
    _check_class(model)
    _check_hooks(model)
    graphs = []
    with modes_restored(model):
        for training in (True, False):
            model.train(training)
            graphs.append(_trace_once(model))
    if _text(graphs[0]) != _text(graphs[1]):
        raise Declined("its graph differs between train and eval mode")
    return graphs[0]


def _check_signature(model: nn.Module) -> None:
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise Declined(f"forward takes {parameter}, where a graph has required positional tensors alone")
        if parameter.default is not parameter.empty:
            raise Declined(f"forward has the optional argument {name!r}, and a graph fixes whether it is given")
        if parameter.annotation not in (parameter.empty, Tensor, "Tensor", "torch.Tensor"):
            raise Declined(f"forward's argument {name!r} is annotated {parameter.annotation!r}, not as a tensor")


def _check_class(model: nn.Module) -> None:
    plain = set(dir(nn.Module)) | set(dir(nn.Sequential))
    own = [
        n for n in dir(type(model)) if not n.startswith("_") and n not in plain and callable(getattr(type(model), n))
    ]
    if own:
        raise Declined(f"its class has methods of its own ({', '.join(own[:3])}), which a graph would lose")


def _check_hooks(model: nn.Module) -> None:
    for fqn, module in model.named_modules():
        if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
            raise Declined(f"{fqn or 'the model'} has hooks or a replaced forward, which a graph would lose")
        if torch.nn.utils.parametrize.is_parametrized(module):
            raise Declined(f"{fqn or 'the model'} has parametrized weights")


def _trace_once(model: nn.Module) -> fx.Graph:
    found: list[str] = []
    with _watch(found):
        try:
            graph = fx.Tracer().trace(model)
        except Exception as error:
            raise Declined(f"symbolic tracing fails: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    if found:
        raise Declined(found[0])
    for node in graph.nodes:
        node.type = None  # annotations, which may be strings that a pickled graph cannot resolve
        if node.op == "get_attr" and node.target.startswith("_tensor_constant"):
            raise Declined("it makes a tensor outside the graph, which would be frozen into it")
    return graph


@contextmanager
def _watch(found: list[str]) -> Iterator[None]:
    """Note every call from the model's own code to something that decides behind the graph's back."""

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event == "c_call":
            caller, name = frame, getattr(arg, "__name__", "")
        elif event == "call":
            caller, name = frame.f_back, frame.f_code.co_name
        else:
            return
        if name in _DECISIONS and caller is not None:
            path = caller.f_code.co_filename
            stdlib = path.startswith(_STDLIB) and "site-packages" not in path
            if not stdlib and not path.startswith(_NOT_THE_MODELS):
                found.append(f"{os.path.basename(path)}:{caller.f_lineno} {_DECISIONS[name]}")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


def _text(graph: fx.Graph) -> str:
    return "\n".join(f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in graph.nodes)


def unreachable(graph: fx.Graph, model: nn.Module, fqns: Iterable[str]) -> str:
    """Why a chosen layer cannot be rewritten in this graph (it lies inside a leaf, or is never called); else empty."""
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    leaves = tuple(f"{target}." for target in called)
    for fqn in fqns:
        if fqn not in called:
            inside = [leaf[:-1] for leaf in leaves if fqn.startswith(leaf)]
            where = f"inside {inside[0]}, which the graph calls as a whole" if inside else "not called as a module"
            return f"{fqn} is {where}"
    return ""

"""A whole model as one fx graph, or why not. Anything doubtful is declined, never traced wrong.

Symbolic tracing runs the model's Python once with stand-ins for tensors, so it is faithful only where Python takes no
decision of its own: forward has required positional arguments alone, no code asks what an argument is or draws a
random number or changes a buffer, train and eval mode give the same graph, and no module carries hooks that a graph
would lose. It runs on a copy without values, so that the model itself stays as it is.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from noble_fx.captures.base import Declined
from noble_fx.captures.meta_copy import meta_copy
from noble_fx.tracing_lock import tracing

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
    "no_grad": "switches gradients on or off, which the graph would not do",
    "autocast": "switches autocast on or off, which the graph would not do",
}
_MODES = {"grad_mode.py": "no_grad", "autocast_mode.py": "autocast"}  # torch's files of the context managers


def trace(model: nn.Module) -> fx.Graph:
    """The one graph of `model`; raises `Declined` with the reason where it would not be faithful."""
    check_traceable(model)
    return trace_copy(meta_copy(model))


def check_traceable(model: nn.Module) -> None:
    """What speaks against a graph of `model` without tracing it; raises `Declined`."""
    _check_signature(model)
    _check_hooks(model)


def trace_copy(model: nn.Module) -> fx.Graph:
    """The graph of a model that is nobody else's: tracing changes its modes and may change its buffers."""
    graphs = []
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


def _check_hooks(model: nn.Module) -> None:
    for fqn, module in model.named_modules():
        if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
            raise Declined(f"{fqn or 'the model'} has hooks or a replaced forward, which a graph would lose")
        if torch.nn.utils.parametrize.is_parametrized(module):
            raise Declined(f"{fqn or 'the model'} has parametrized weights")


def _trace_once(model: nn.Module) -> fx.Graph:
    decisions: list[str] = []
    versions = {name: buffer._version for name, buffer in model.named_buffers()}
    with _watch(decisions):
        try:
            with tracing():
                graph = fx.Tracer().trace(model)
        except Exception as error:
            raise Declined(f"symbolic tracing fails: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    if decisions:
        raise Declined(decisions[0])
    for name, buffer in model.named_buffers():
        if buffer._version != versions.get(name):
            raise Declined(f"it changes the buffer {name!r} while it is traced, and a graph would not do it again")
    for node in graph.nodes:
        node.type = None  # annotations, which may be strings that a pickled graph cannot resolve
        if node.op == "get_attr" and node.target.startswith("_tensor_constant"):
            raise Declined("it makes a tensor outside the graph, which would be frozen into it")
    return graph


@contextmanager
def _watch(decisions: list[str]) -> Iterator[None]:
    """Note every call from the model's own code to something that decides behind the graph's back."""

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event == "c_call":
            caller, name = frame, getattr(arg, "__name__", "")
        elif event == "call":
            caller, name = frame.f_back, frame.f_code.co_name
            name = _MODES.get(os.path.basename(frame.f_code.co_filename), name) if name == "__enter__" else name
        else:
            return
        if name in _DECISIONS and caller is not None:
            path = caller.f_code.co_filename
            stdlib = path.startswith(_STDLIB) and "site-packages" not in path
            if not stdlib and not path.startswith(_NOT_THE_MODELS):
                decisions.append(f"{os.path.basename(path)}:{caller.f_lineno} {_DECISIONS[name]}")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


def _text(graph: fx.Graph) -> str:
    return "\n".join(f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in graph.nodes)

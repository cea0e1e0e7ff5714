"""A whole model as one fx graph, or why not. Anything doubtful is declined, never traced wrong.

Symbolic tracing runs the model's Python once with stand-ins for tensors, so it is faithful only where Python takes no
decision of its own: forward has required positional arguments alone, no code asks what an argument is or draws a
random number or changes a buffer, train and eval mode give the same graph, and no module carries hooks that a graph
would lose. It runs on a copy without values, so that the model itself stays as it is.
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from noble_fx.captures.assumed import Assumed
from noble_fx.captures.base import Declined
from noble_fx.captures.meta_copy import copy_over, meta_copy, to_meta
from noble_fx.captures.watch import Watch
from noble_fx.layers.structured import Structured
from noble_fx.random_states import undisturbed
from noble_fx.torch_state import autocast_is_on
from noble_fx.torch_versions import TorchDispatchMode
from noble_fx.tracing_lock import tracing

_NOT_THE_MODELS = (
    os.path.dirname(torch.__file__),
    os.path.dirname(os.path.dirname(__file__)),
    "<frozen",
    "<eval_with_key>",
)
_STDLIB = os.path.dirname(os.__file__)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What no graph does again.
EFFECTS = {
    "print": "prints, which the graph would not do",
    "checkpoint": "computes activations anew in backward (checkpoint), which the graph would not do",
}
# Called by the model's own code while it is traced, each of these can decide on something a graph cannot see.
_DECISIONS = EFFECTS | {
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
_READS_A_VALUE = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
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
    return _trace_modes(model, [None, None])


def trace_watched(model: nn.Module) -> tuple[fx.Graph, Assumed]:
    """The graph to run in the place of `model`, and what it takes for granted; raises `Declined`, of changes too."""
    check_traceable(model)
    copied, own = copy_over(model, to_meta)
    watches = [Watch(copied, own), Watch(copied, own)]
    graph = _trace_modes(copied, watches)
    return graph, Assumed.of(watches, any_mode=True).without_tensors(watches)


def _trace_modes(model: nn.Module, watches: Sequence[Watch | None]) -> fx.Graph:
    graphs = []
    for training, watch in zip((True, False), watches, strict=True):
        model.train(training)
        graphs.append(_trace_once(model, watch))
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


def _trace_once(model: nn.Module, watch: Watch | None) -> fx.Graph:
    decisions: list[str] = []
    versions = {name: buffer._version for name, buffer in model.named_buffers()}
    tracer = _Tracer(watch, decisions)
    with tracing(), undisturbed(), watch.watching() if watch else nullcontext(), decisions_noted(decisions):
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()), _OutsideTheGraph(decisions):
                graph = tracer.trace(model)
        except Exception as error:
            reason = f"symbolic tracing fails: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise Declined(decisions[0] if decisions else reason) from None
        if watch is not None:
            watch.check()
    if decisions:
        raise Declined(decisions[0])
    for name, buffer in model.named_buffers():
        if buffer._version != versions.get(name):
            raise Declined(f"it changes the buffer {name!r} while it is traced, and a graph would not do it again")
    for node in graph.nodes:
        node.type = None  # annotations, which may be strings that a pickled graph cannot resolve
        if node.op == "get_attr" and node.target.startswith("_tensor_constant"):
            raise Declined("it makes a tensor outside the graph, which would be frozen into it")
        if watch is not None and "nn_module_stack" in node.meta:
            stack = node.meta["nn_module_stack"]
            node.meta["nn_module_stack"] = {k: (n, watch.real_class(kind)) for k, (n, kind) in stack.items()}
    return graph


class _Tracer(fx.Tracer):
    """fx's own, which lets a watch note what forward itself reads, and looks at the modes in which operators run."""

    def __init__(self, watch: Watch | None, decisions: list[str]):
        super().__init__()
        self.watch, self.decisions, self.modes = watch, decisions, _modes()

    def _noting(self, on: bool) -> AbstractContextManager[None]:
        return self.watch.noting(on) if self.watch is not None else nullcontext()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Structured) or super().is_leaf_module(
            m, module_qualified_name
        )  # a linear map as any other

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        forward, inputs = super().create_args_for_root(*args, **kwargs)

        @functools.wraps(forward)
        def noted(*args: Any, **kwargs: Any) -> Any:
            with self._noting(True):
                return forward(*args, **kwargs)

        return noted, inputs

    def getattr(self, *args: Any, **kwargs: Any) -> Any:
        with self._noting(False):
            return super().getattr(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        with self._noting(False):
            return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            self.decisions.append("it switches gradients, autocast or the dtype, which the graph would not do")
        return super().create_node(*args, **kwargs)


def _modes() -> tuple[Any, ...]:
    """What decides on how an operator runs besides its arguments."""
    autocast = [kind for kind in ("cpu", "cuda") if autocast_is_on(kind)]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, torch.get_default_dtype()


class _OutsideTheGraph(TorchDispatchMode):
    """Declines what is done to tensors that are none of the graph's before it is done: they may be the user's."""

    def __init__(self, decisions: list[str]):
        super().__init__()
        self.decisions = decisions

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator in _READS_A_VALUE and not args[0].is_meta:
            self._decline("reads the value of a tensor outside the graph, which would be frozen into it")
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        if operator._schema.is_mutable and not all(tensor.is_meta for tensor in tensors):
            self._decline(f"changes a tensor outside the graph ({operator}), which it would not do again")
        return operator(*args, **(kwargs or {}))

    def _decline(self, reason: str) -> None:
        self.decisions.append(f"it {reason}")
        raise Declined(f"it {reason}")


@contextmanager
def decisions_noted(decisions: list[str], of: Mapping[str, str] = _DECISIONS) -> Iterator[None]:
    """Note every call from the model's own code to one of those functions, with what is wrong about it."""
    types_too = of is _DECISIONS

    def profile(frame: Any, event: str, arg: Any) -> None:
        own = types_too and event == "call" and not _is_foreign(frame.f_code.co_filename)
        if own and (line := _asks_for_type(frame.f_code)):
            decisions.append(f"{os.path.basename(frame.f_code.co_filename)}:{line} asks for the type of a value")
        if event == "c_call":
            caller, name = frame, getattr(arg, "__name__", "")
        elif event == "call":
            caller, name = frame.f_back, frame.f_code.co_name
            if name == "__enter__":
                name = _MODES.get(os.path.basename(frame.f_code.co_filename), name)
            elif name == "checkpoint":
                caller = _models_own(caller) if frame.f_code.co_filename == torch.utils.checkpoint.__file__ else None
        else:
            return
        if name in of and caller is not None:
            path = caller.f_code.co_filename
            if not _is_foreign(path):
                decisions.append(f"{os.path.basename(path)}:{caller.f_lineno} {of[name]}")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        _profile_again(before)


def _profile_again(profiler: Any) -> None:
    """Let the profiler go on that was there before: a function, or cProfile, which is none in Python 3.11."""
    sys.setprofile(profiler if callable(profiler) else None)
    if profiler is not None and not callable(profiler):
        profiler.enable()


def _models_own(frame: Any) -> Any:
    """The nearest frame of the model's own code."""
    while frame is not None and _is_foreign(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _is_foreign(path: str) -> bool:
    """True for a file of torch's, of Python's or of this tracer, whose decisions are none of the model's."""
    return path.startswith(_NOT_THE_MODELS) or (path.startswith(_STDLIB) and "site-packages" not in path)


@functools.cache
def _asks_for_type(code: types.CodeType) -> int:
    """The line of a function where it takes `type` or `.__class__`, of which tracing changes the answer; or 0."""
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = instruction.positions.lineno or line if instruction.positions else line
        name = instruction.argval
        if (instruction.opname == "LOAD_GLOBAL" and name == "type") or (
            instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and name == "__class__"
        ):
            return line
    return 0


def _text(graph: fx.Graph) -> str:
    return "\n".join(f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in graph.nodes)

"""An activation as two aten graphs: σ itself, and its vector–Jacobian product.

    forward    (h [rows, r], *tensors)                 -> t [rows, r]
    backward   (h [rows, r], *tensors, dt [rows, r])   -> t, dh, *dparameters

PyTorch differentiates (`torch.func.vjp`), `make_fx` records; `tensors` are σ's parameters, then its buffers. The rows
are symbolic, so one trace serves every batch. What cannot be traced faithfully is refused with a reason, and the
caller keeps the eager branch.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from noble_fx.branches.keys import first_line, made_of_known_parts, runnable, template, why_not_recorded
from noble_fx.branches.quick import quick
from noble_fx.branches.recording import ROWS, asks_for_grad_mode, elsewhere, record, sampled
from noble_fx.branches.rows import MixesRows, check_rows
from noble_fx.errors import Refusal
from noble_fx.tracing_lock import as_part, tracing


@dataclass(frozen=True)
class ActivationProgram:
    """The two graphs of one σ at one rank and dtype; `parameters` tensors have gradients, the rest are buffers."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    names: tuple[str, ...]  # of σ's tensors, parameters first
    parameters: int
    unused: tuple[int, ...] = ()  # parameters on which no gradient falls, which get None and not zeros

    # Past `__call__`: these are no modules of the user's, so hooks of all modules (a FLOP counter's) are not theirs.

    def apply(self, h: Tensor, *tensors: Tensor) -> Tensor:
        """t = σ(h) [rows, r]."""
        t: Tensor = self._quick[0](h, *tensors)
        return t

    def differentiate(self, h: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """t, dh and the gradients of σ's parameters, for `rest` = (*tensors, dt [rows, r])."""
        gradients: tuple[Tensor, ...] = self._quick[1](h, *rest)
        return gradients

    @functools.cached_property
    def _quick(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return quick(self.forward), quick(self.backward)


class Untraceable(Exception):
    """Why an activation has no graphs; the message is the reason that `explain` shows."""


def activation_program(key: str, rank: int, dtype: torch.dtype) -> ActivationProgram:
    """The graphs of the activation of `key`; raises `Untraceable` with the reason when they would not be faithful."""
    program = _program(key, rank, dtype)
    if isinstance(program, Refusal):
        raise Untraceable(program.reason)
    return program


def why_untraceable(key: str, rank: int) -> Refusal | None:
    """The reason why this activation stays eager, or None."""
    program = _program(key, rank, torch.float32)
    return program if isinstance(program, Refusal) else None


@functools.cache
def _program(key: str, rank: int, dtype: torch.dtype) -> ActivationProgram | Refusal:
    if refusal := why_not_recorded(key):
        return refusal
    try:
        return elsewhere(as_part(lambda: _trace(key, rank, dtype)))
    except Untraceable as reason:
        return Refusal(str(reason))


@dataclass(frozen=True)
class ActivationFunctions:
    """σ as functions of (h, *tensors) and of (h, *tensors, dt)."""

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]  # parameters first; on the meta device
    names: tuple[str, ...]
    parameters: int


def activation_functions(key: str) -> ActivationFunctions:
    """σ of `key` as functions, to be traced."""
    act = copy.deepcopy(runnable(key)).train()  # a dropout must show itself
    names = _tensor_names(act)
    parameters = len(list(act.parameters()))

    def forward(h: Tensor, *tensors: Tensor) -> Tensor:
        return functional_call(act, dict(zip(names, tensors, strict=True)), (h,))

    def backward(h: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        tensors, dt = rest[:-1], rest[-1]
        moving, fixed = tensors[:parameters], tensors[parameters:]
        t, vjp = torch.func.vjp(  # type: ignore[misc]  # three results only with has_aux
            lambda h, *moving: forward(h, *moving, *fixed), h, *moving
        )
        return (t, *vjp(dt))

    return ActivationFunctions(forward, backward, (*act.parameters(), *act.buffers()), tuple(names), parameters)


@tracing()
def _trace(key: str, rank: int, dtype: torch.dtype) -> ActivationProgram:
    act, own = activation_functions(key), sampled(template(key), dtype)
    tensors = [*own.parameters(), *own.buffers()]
    generator = torch.Generator().manual_seed(0)
    h, dt = (torch.rand(ROWS, rank, generator=generator, dtype=dtype) + 0.5 for _ in range(2))
    try:
        with torch.no_grad():
            _check_sources(make_fx(act.forward)(h, *tensors))
        _check_modes(own, rank, dtype)
        graphs = [_graph(act.forward, h, *tensors), _graph(act.backward, h, *tensors, dt)]
        if not made_of_known_parts(template(key)):
            check_rows(act.forward, rank, tensors, dtype)  # after the graphs have shown that nothing is drawn at random
    except MixesRows as reason:
        raise Untraceable(str(reason)) from None
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(f"{type(error).__name__} while tracing: {first_line(error)}") from error
    return ActivationProgram(graphs[0], graphs[1], act.names, act.parameters, _unused(own, h))


def _unused(own: nn.Module, h: Tensor) -> tuple[int, ...]:
    parameters = [p.requires_grad_(p.is_floating_point()) for p in own.parameters()]
    t = own(h.clone())
    wanted = [p for p in parameters if p.requires_grad]
    found = iter(torch.autograd.grad(t.sum(), wanted, allow_unused=True) if wanted and t.requires_grad else ())
    return tuple(at for at, p in enumerate(parameters) if not p.requires_grad or next(found, None) is None)


def _check_modes(act: nn.Module, rank: int, dtype: torch.dtype) -> None:
    """One graph stands for both modes, and for every call."""
    act.train()
    trained = record(act, rank, dtype)
    if record(act, rank, dtype) != trained:
        raise Untraceable("computes something else each time it is called")
    act.eval()
    if record(act, rank, dtype) != trained:
        raise Untraceable("computes something else in train mode than in eval mode")
    if asks_for_grad_mode(act, rank, dtype):
        raise Untraceable("computes something else where no gradients are recorded")


def _tensor_names(act: nn.Module) -> list[str]:
    return [*(name for name, _ in act.named_parameters()), *(name for name, _ in act.named_buffers())]


def _graph(fn: Callable[..., Any], *args: Tensor) -> fx.GraphModule:
    # Functionalized, because PyTorch's own derivatives fill fresh tensors in place; a change of an input stays visible.
    graph_module = make_fx(torch.func.functionalize(fn, remove="mutations"), tracing_mode="symbolic")(*args)
    _check_operators(graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _check_sources(graph_module: fx.GraphModule) -> None:
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            raise Untraceable("holds a tensor that is neither a parameter nor a buffer")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Untraceable(f"draws random numbers ({node.target})")


def _check_operators(graph_module: fx.GraphModule) -> None:
    _check_sources(graph_module)
    for node in graph_module.graph.nodes:
        if getattr(node.target, "_schema", None) is not None and node.target._schema.is_mutable:
            raise Untraceable(f"changes a tensor in place ({node.target})")


def eager(key: str, tensors: list[Tensor], h: Tensor) -> Tensor:
    """σ of `key` in ordinary differentiable PyTorch operators, [.., r] -> [.., r], float32 or better inside."""
    act = runnable(key)
    wide = torch.promote_types(h.dtype, torch.float32)
    names = _tensor_names(act)
    state = {n: t.to(wide) if t.is_floating_point() else t for n, t in zip(names, tensors, strict=True)}
    return functional_call(act, state, (h.to(wide),)).to(h.dtype)

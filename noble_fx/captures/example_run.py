"""A model run on its example inputs, on copies: what its graphs would take for granted, and whether they do the same.

    model --shares its values, own buffers--> copy --run, watched----> what forward read, changed and asked
                                              copy --differentiated--> results and gradients
                                              copy --exported--------> the program's: the same?

torch.export freezes what Python code decides while it is traced. What forward reads of the model is noted here and
looked at before every run (`captures/assumed.py`), and what a graph would not do again declines. What no reading shows
(code that asks whether it is exported, a backward of one's own) makes other results or gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noble_fx.captures.base import Declined
from noble_fx.captures.meta_copy import copy_over
from noble_fx.captures.tracing import EFFECTS, decisions_noted
from noble_fx.captures.watch import Watch, shown
from noble_fx.random_states import undisturbed
from noble_fx.torch_versions import TorchDispatchMode


@dataclass(frozen=True)
class ExampleRun:
    """What a run noted, what came out, flat, and the buffers afterwards; or the error that the model itself raised."""

    watch: Watch
    results: list[Any]
    buffers: list[Tensor]
    error: Exception | None = None


def working_copy(model: nn.Module, training: bool) -> tuple[nn.Module, frozenset[int]]:
    """A copy in that mode with the same values and buffers of its own; hooks on the whole run around graphs instead."""
    buffers, parameters = set(map(id, model.buffers())), set(map(id, model.parameters()))

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) in buffers:
            return _cloned(tensor)
        return tensor.detach() if id(tensor) in parameters else tensor  # without the hooks of the user's

    copied, own = copy_over(model, stand_in)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        vars(copied)[name].clear()
    copied.train(training)
    return copied, own


def watched_run(model: nn.Module, arguments: dict[str, Any], training: bool) -> ExampleRun:
    """Run a copy of `model` in that mode, without gradients; raises `Declined` for what a graph would not do again.

    What the first run makes to keep (a cache, a flag) and a second one does not make again is no obstacle.
    """
    copied, own = working_copy(model, training)
    tables = [(module, dict(module._buffers)) for module in copied.modules()]
    values = {id(buffer): _cloned(buffer) for buffer in copied.buffers()}
    first, watch = (Watch(copied, own, buffers_may_change=True) for _ in range(2))
    results, error = _guarded_run(copied, arguments, first)
    for module, buffers in tables:
        module._buffers = {name: values.get(id(buffer)) for name, buffer in buffers.items()}
    if error is None:
        results, error = _guarded_run(copied, arguments, watch)
    if error is None:
        if again := [path for path in watch.sets if first.sets.get(path)]:
            raise Declined(f"forward sets {shown(again[0])}, which a graph would not do again")
        watch.check()
    return ExampleRun(watch, results, list(copied.buffers()), error)


def _guarded_run(copied: nn.Module, arguments: dict[str, Any], watch: Watch) -> tuple[list[Any], Exception | None]:
    """What comes out, or the error; raises `Declined` for what is done outside of the copy."""
    strangers, effects = _Strangers(copied), list[str]()
    results: list[Any] = []
    error = None
    with watch.watching(), undisturbed() as draws, torch.no_grad():
        try:
            with strangers, watch.noting(), decisions_noted(effects, EFFECTS):
                results = _results(copied, arguments)
        except Exception as raised:
            error = raised
        drawn = draws()
    if strangers.changed or effects:
        raise Declined((strangers.changed + effects)[0])
    if drawn:
        raise Declined(f"forward draws random numbers of {drawn}, which a graph would not do again")
    return results, error


def check_same(model: nn.Module, run: ExampleRun, program: nn.Module, copied: nn.Module, arguments: Any) -> None:
    """Raise `Declined` where `program`, over the tensors of `copied`, gives something else than `model` in its mode."""
    mode = "train" if copied.training else "eval"
    with undisturbed():
        results, gradients = _differentiated(program, copied, arguments)
    if not _all_same(results, run.results):
        raise Declined(f"its graph gives another result than its forward in {mode} mode, on the example inputs")
    if not _all_same(list(copied.buffers()), run.buffers):
        raise Declined(f"its graph leaves other buffers than its forward in {mode} mode, on the example inputs")
    plain, _ = working_copy(model, copied.training)
    with undisturbed():
        _, expected = _differentiated(plain, plain, arguments)
    if not _all_same(gradients, expected):
        raise Declined(f"its graph gives other gradients than its forward in {mode} mode, on the example inputs")


def _cloned(buffer: Tensor) -> Tensor:
    return buffer.detach().clone().requires_grad_(buffer.requires_grad)


# --- results ---------------------------------------------------------------------------------------------------------


def _results(module: nn.Module, arguments: dict[str, Any]) -> list[Any]:
    """What the module returns for its own copy of the arguments, and these as it leaves them."""
    own = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), arguments)
    return pytree.tree_leaves((module(**own), own))


def _differentiated(module: nn.Module, owner: nn.Module, arguments: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The results, and the gradients of their sum for the parameters of `owner`; none where there is nothing to do."""
    with torch.enable_grad():
        results = _results(module, arguments)
        parameters = [parameter for parameter in owner.parameters() if parameter.requires_grad]
        sums = [leaf.abs().sum() for leaf in results if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not sums or not parameters:
            return results, []
        return results, list(torch.autograd.grad(sums, parameters, allow_unused=True))


def _all_same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_meta or other.is_meta or torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    size = other.detach().abs().nan_to_num(0.0, 0.0, 0.0).max().item()
    try:  # the operators are the same, but not the order in which gradients are added up
        torch.testing.assert_close(one, other, rtol=0.0, atol=size * torch.finfo(one.dtype).eps ** 0.5, equal_nan=True)
    except AssertionError:
        return False
    return True


# --- changes ---------------------------------------------------------------------------------------------------------


class _Strangers(TorchDispatchMode):
    """Stops what would change a tensor that forward neither made nor was given: a parameter, or somebody else's."""

    def __init__(self, copied: nn.Module):
        super().__init__()
        self.changed: list[str] = []
        self._known = set(map(_storage, copied.buffers()))

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operator._schema.is_mutable:
            for value in _written(operator, args, kwargs):
                self._look_at(operator, value)
        results = operator(*args, **kwargs)
        self._known |= {_storage(leaf) for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)}
        return results

    def _look_at(self, operator: Any, value: Any) -> None:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor) and _storage(leaf) not in self._known:
                self.changed.append(
                    f"forward changes a tensor of shape {list(leaf.shape)} in place ({operator}) that is neither a "
                    f"buffer nor its own, which a graph would not do again"
                )
                raise Declined(self.changed[-1])


def _written(operator: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """The arguments that the operator writes to."""
    for i, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[i] if i < len(args) else kwargs.get(argument.name)


def _storage(tensor: Tensor) -> int:
    """Which memory it is; a kind of tensor without one is itself."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)

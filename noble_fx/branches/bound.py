"""What the operator assumes of a branch, looked at in every call: that the branch is what it was when it was prepared.

The tensors are read off the modules' own tables, so that whatever put others there (an optimizer's wrapper,
`functional_call`, a sharding) is honoured, and whatever is no plain tensor, or has gone, is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from noble_fx.torch_state import PLAIN_TENSORS

Table = Mapping[str, Any]


def read(parameters: Table, attributes: Table, name: str) -> Any:
    """The tensor of that name: a parameter, a buffer, or what a wrapper put in a parameter's place (FSDP1's views)."""
    tensor = parameters.get(name)
    return attributes.get(name) if tensor is None else tensor


def is_untouched(module: Any) -> bool:
    """Whether a module has no hooks of its own, and no forward put on the object."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


@dataclass(frozen=True)
class FusedForm:
    """A branch as operands of `noble_fx::linear`: the names of its own tensors ("down", "act.first.phase"), σ's key.

    `up_bias` [N] is added to the layer's bias. `act` lists σ's parameters, then its buffers. Of several names for D or
    U the operand is [D₁; D₂; …] [r, K] and [U₁ U₂ …] [N, r]; a d that is shorter than r has zeros behind it.
    """

    down: str | tuple[str, ...]
    down_bias: str | None
    up: str | tuple[str, ...]
    up_bias: str | None
    act: tuple[str, ...]
    key: str
    ranks: tuple[int, ...] = ()  # of each of several D
    unchanged: Callable[[], bool] = field(default=lambda: True, compare=False)  # False once `key` says it no more


class Bound:
    """The places of a branch's tensors, and what must still hold for the operator to stand for the branch."""

    __slots__ = ("_branch", "_input", "_kind", "_more", "_places", "_shapes", "_unchanged", "_weight")

    def __init__(self, branch: Any, form: FusedForm):
        modules = dict(branch.named_modules())

        def place(path: str | None) -> tuple[Table, Table, str | None]:
            if path is None:
                return {}, {}, None
            owner, _, name = path.rpartition(".")
            module = modules[owner]
            return module._parameters if name in module._parameters else module._buffers, vars(module), name

        n, k = branch.out_features, branch.in_features
        self._input, self._weight = (k,), (n, k)
        self._branch, self._kind = branch, type(branch)
        downs, ups, ranks = names_of(form.down), names_of(form.up), form.ranks or (branch.rank,)
        self._more = len(ranks) - 1
        # In columns: of a row Dynamo would guard the tuple as well as what is in it.
        places = map(place, (downs[0], form.down_bias, ups[0], form.up_bias, *form.act, *downs[1:], *ups[1:]))
        self._places = tuple(zip(*places, strict=True))
        named = dict([*branch.named_parameters(), *branch.named_buffers()])
        own = ((ranks[0], k), (ranks[0],), (n, ranks[0]), (n,), *(tuple(named[path].shape) for path in form.act))
        self._shapes = (*own, *((r, k) for r in ranks[1:]), *((n, r) for r in ranks[1:]))
        self._unchanged: Callable[[], bool] = form.unchanged

    @property
    def has_down_bias(self) -> bool:
        """Whether there is a d among its operands."""
        return self._places[2][1] is not None

    def operands(
        self, branch: Any, x: Tensor, shape: Sequence[int], classes: frozenset[type] = PLAIN_TENSORS
    ) -> list[Any] | None:
        """D, d, U, the bias of U (None where there is none), then σ's tensors; None where the branch must run itself.

        It is called on `x` [.., K] beside a W of that `shape` (N, K); `classes` are those that its tensors may be of.
        """
        if (
            type(branch) is not self._kind
            or branch is not self._branch  # a copy that shares it, such as a replica of DataParallel's
            or not is_untouched(branch)
            or torch_module._has_any_global_hook()
            or not self._unchanged()
        ):
            return None
        tensors: list[Any] = []
        for parameters, attributes, name, own in zip(*self._places, self._shapes, strict=True):
            tensor: Any = None if name is None else read(parameters, attributes, name)
            if name is not None and (type(tensor) not in classes or tensor.shape != own):
                return None
            tensors.append(tensor)
        if shape != self._weight or x.shape[-1:] != self._input:
            return None
        if not self._more:
            return tensors
        return None if classes is not PLAIN_TENSORS else joined(tensors, self._more)

    def downs(self) -> list[Any]:
        """D, or the matrices that it is made of: what a graph shows of a branch."""
        parameters, attributes, names = self._places[:3]
        places = [0, *range(len(names) - 2 * self._more, len(names) - self._more)]
        return [read(parameters[at], attributes[at], names[at]) for at in places]


def names_of(named: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name or several as several."""
    return (named,) if isinstance(named, str) else named


def joined(tensors: list[Any], more: int) -> list[Any]:
    """The operands with D = [D₁; D₂; …], U = [U₁ U₂ …] and zeros behind d, of D₁, d, U₁, …, D₂, …, U₂, …"""
    at = len(tensors) - 2 * more
    down, down_bias, up, *rest = tensors[:at]
    downs, ups = [down, *tensors[at : at + more]], [up, *tensors[at + more :]]
    if down_bias is not None:
        down_bias = F.pad(down_bias, (0, sum(len(each) for each in downs[1:])))
    return [torch.cat(downs), down_bias, torch.cat(ups, 1), *rest]

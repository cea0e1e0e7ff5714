"""Branches that do not sit in a layer of their own: beside a bare parameter, or one per expert of a stacked weight."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.branches.base import Branch
from noble_fx.branches.grouped import Dense, Groups, Sorted, ends, sorted_rows, taken
from noble_fx.branches.noble import NobleBranch
from noble_fx.branches.stacked_sigma import alike, evaluate_all, is_changed, same_tensors
from noble_fx.torch_state import in_transform, is_exporting

_OWN = ("down", "down_bias", "up", "up_bias")


class BranchGroup(nn.ModuleDict):
    """The branches of one module's bare parameters, by parameter name: `attn.noble.in_proj_weight.down`, …"""


class StackedBranches(nn.ModuleList):
    """One branch per matrix of a stacked weight, of any kind.

    x [.., E, T, K] -> [.., E, T, N]; or with `where`, the `Groups` of rows or the offsets [E] of sorted ones,
    x [S, K] -> [S, N].
    """

    def __init__(self, branches: Iterable[nn.Module] = ()):
        super().__init__(branches)
        _keep_out_of_graphs()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _keep_out_of_graphs()

    @property
    def enabled(self) -> bool:
        """Off only inside `noble_fx.disabled`."""
        return all(branch.enabled for branch in self)

    def branches(self) -> Iterator[Branch]:
        """Each expert's, in their order."""
        yield from (branch for branch in self if isinstance(branch, Branch))

    def forward(self, x: Tensor, where: Tensor | Groups | None = None) -> Tensor:
        if where is None:
            return self._dense(x)
        return self._grouped(x, sorted_rows(where, x.shape[0]) if isinstance(where, Tensor) else where)

    def _dense(self, x: Tensor) -> Tensor:
        x = x.expand(*x.shape[:-3], len(self), -1, -1)  # the experts may see the same rows
        return torch.stack([branch(x.select(-3, e)) for e, branch in enumerate(self)], dim=-3)

    def _grouped(self, x: Tensor, groups: Any) -> Tensor:
        if is_exporting() or in_transform():
            return self._masked(x, groups.experts)
        return self._one_by_one(x, groups.experts)

    def _one_by_one(self, x: Tensor, experts: Tensor) -> Tensor:
        """Each branch over the rows of its own expert; an expert without rows is not run."""
        ordered, order = torch.sort(experts)
        last = ends(ordered, len(self)).tolist()
        bounds = list(zip([0, *last[:-1]], last, strict=True))
        rows = taken(x, order)
        parts = [branch(rows[a:b]) for branch, (a, b) in zip(self, bounds, strict=True) if b > a]
        y = torch.cat(parts) if parts else self[0](rows)
        return taken(y, torch.argsort(order))

    def _masked(self, x: Tensor, experts: Tensor) -> Tensor:
        # Every branch over all rows, its own rows kept: what can be traced of a module that nobody knows.
        y: Any = 0
        for e, branch in enumerate(self):
            mine = (experts == e).unsqueeze(-1)
            y = y + torch.where(mine, branch(torch.where(mine, x, 0)), 0)
        return y


@functools.cache
def _keep_out_of_graphs() -> None:
    """Let Dynamo leave `_one_by_one` alone; to say so imports Dynamo, so it is said where there are experts."""
    apart: Any = torch.compiler.disable(StackedBranches._one_by_one)
    StackedBranches._one_by_one = apart  # type: ignore[method-assign]


class ExpertBranches(StackedBranches):
    """NOBLE's branches of a stacked weight, computed together: a product over all experts, not one for each."""

    def _dense(self, x: Tensor) -> Tensor:
        branches = list(self)
        return self._together(branches, x, Dense()) if may_be_one(branches) else super()._dense(x)

    def _grouped(self, x: Tensor, groups: Groups) -> Tensor:
        branches, among = list(self), groups
        if isinstance(groups, Sorted) and _asks_for_values() and x.shape[0] < len(branches):
            branches, among = _those_with_rows(branches, groups)
        return self._together(branches, x, among) if may_be_one(branches) else super()._grouped(x, groups)

    @staticmethod
    def _together(branches: Sequence[nn.Module], x: Tensor, groups: Groups) -> Tensor:
        def stack(name: str) -> Tensor | None:
            tensors = [branch._parameters.get(name) for branch in branches]
            return None if tensors[0] is None else torch.stack(tensors)  # type: ignore[arg-type]

        def linear(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
            y = groups.product(x, weight)
            return y if bias is None else y + groups.rows(bias).to(y.dtype)

        h = linear(x, stack("down"), stack("down_bias"))
        t = evaluate_all([branch._modules["act"] for branch in branches], h, groups)  # type: ignore[misc]
        return linear(t, stack("up"), stack("up_bias"))


def may_be_one(branches: Sequence[nn.Module]) -> bool:
    """Whether each is a plain `NobleBranch` that nobody hooked, of the shapes and the σ of the others."""
    return (
        all(type(branch) is NobleBranch and not is_changed(branch) for branch in branches)
        and all(same_tensors(branches, name) for name in _OWN)
        and alike([branch._modules["act"] for branch in branches])
    )


def _asks_for_values() -> bool:
    """Whether Python may ask a tensor for its values, and nobody waits for gradients of what it leaves out."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or is_exporting())


def _those_with_rows(branches: list[Any], groups: Sorted) -> tuple[list[Any], Groups]:
    """The branches of experts that have rows alone: a token that is decoded reads as many as it is routed to."""
    ends_of = groups.offsets.tolist()
    present = [e for e, (a, b) in enumerate(zip([0, *ends_of[:-1]], ends_of, strict=True)) if b > a] or [0]
    kept = torch.tensor(present, device=groups.offsets.device)
    return [branches[e] for e in present], Sorted(groups.offsets[kept], torch.bucketize(groups.experts, kept))


def expert_branches(branches: Sequence[Branch]) -> StackedBranches:
    """The holder for the branches of a stacked weight, in the order of its experts."""
    together = all(type(branch) is NobleBranch for branch in branches)
    return ExpertBranches(branches) if together else StackedBranches(branches)

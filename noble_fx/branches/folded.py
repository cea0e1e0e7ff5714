"""A branch for inference: what is constant per channel in σ moves into the matrices beside it.

    diag(s) (D x + d) + c       =  (s ⊙ D) x + (s ⊙ d + c)          an affine map after a matrix
    M (s ⊙ h + c) + m           =  (M diag(s)) h + (M c + m)        … before a matrix

σ is opened into a chain of parts, D in front of it and U behind. CosNet keeps two bare cosines and its mixer:

    cos(ω₂ ⊙ (M cos(ω₁ ⊙ (D x + d) + φ₁) + m) + φ₂)  =  cos(M' cos(D' x + d') + m')

Computed in float64, stored in the branch's own dtype. A part that this file does not know stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.branches.activations import Cosine, Mixer, ScaleShift, Signed
from noble_fx.errors import Refusal


class Cos(nn.Module):
    """cos(h), pointwise: what is left of a `Cosine` whose ω and φ are folded."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.cos(h)


@dataclass
class _Affine:
    """s ⊙ h + c on the way to be folded, in float64; s and c are [r] or scalars, c None where there is none."""

    scale: Tensor
    shift: Tensor | None

    def then(self, other: _Affine) -> _Affine:
        """This one, and after it the other, as one."""
        return _Affine(other.scale * self.scale, _sum(_product(self.shift, other.scale), other.shift))


@dataclass
class _Matrix:
    """h Mᵀ + m, in float64, and the part of σ it came from (None for D and U)."""

    weight: Tensor
    bias: Tensor | None
    part: nn.Module | None = None

    def after(self, affine: _Affine) -> None:
        """Take in an affine map of the result."""
        rows = len(self.weight)
        bias = _sum(_product(self.bias, affine.scale), affine.shift)
        self.weight = affine.scale.expand(rows).unsqueeze(1) * self.weight
        self.bias = None if bias is None else bias.expand(rows)

    def before(self, affine: _Affine) -> None:
        """Take in an affine map of the input."""
        if affine.shift is not None:
            self.bias = _sum(self.weight @ affine.shift.expand(self.weight.shape[1]), self.bias)
        self.weight = self.weight * affine.scale


_Link = _Affine | _Matrix | nn.Module


Parts = tuple[nn.Parameter, nn.Parameter | None, nn.Module, nn.Parameter, nn.Parameter | None]


def fold_constants(
    act: nn.Module, down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None, label: str
) -> Parts | Refusal:
    """(D', d', σ', U', bias of U') of a branch with its constants folded; or why there is nothing to fold."""
    chain: list[_Link] = [
        _Matrix(down.detach().double(), _wide(down_bias)),
        *_opened(act, down.new_ones((), dtype=torch.float64)),
        _Matrix(up.detach().double(), _wide(up_bias)),
    ]
    count = sum(isinstance(link, _Affine) for link in chain)
    if not count:
        return Refusal(f"σ ({label}) has no constants to fold")
    _merge(chain)
    if sum(isinstance(link, _Affine) for link in chain) == count:
        return Refusal(f"no matrix stands next to the constants of σ ({label})")
    first, *links, last = chain
    assert isinstance(first, _Matrix)
    assert isinstance(last, _Matrix)
    sigma = _closed([_part(link, down) for link in links])
    return (
        _stored(first.weight, down),
        _optional(first.bias, down),
        sigma,
        _stored(last.weight, down),
        _optional(last.bias, down),
    )


def _opened(act: Any, unit: Tensor) -> Iterator[_Link]:
    """The chain that `act` is. Exact classes only: a subclass may compute something else."""
    kind = type(act)
    if act._forward_hooks or act._forward_pre_hooks:
        yield act
    elif kind is nn.Sequential:
        for part in act.children():
            yield from _opened(part, unit)
    elif kind is Cosine:
        yield _Affine(act.frequency.detach().double(), act.phase.detach().double())
        yield Cos()
    elif kind is ScaleShift:
        yield _Affine(unit if act.scale is None else act.scale.detach().double(), _wide(act.shift))
    elif kind is Signed:
        if act.flip:
            yield _Affine(-unit, None)
        yield from _opened(act.inner, unit)
        yield _Affine(-unit, None)
    elif kind in (Mixer, nn.Linear):
        yield _Matrix(act.weight.detach().double(), _wide(act.bias), act)
    elif kind is not nn.Identity:
        yield act


def _merge(chain: list[_Link]) -> None:
    """Fold every affine map into the matrix before it, else into the one behind it."""
    for at in range(len(chain) - 1, 0, -1):  # two in a row become a single map first
        first, second = chain[at - 1], chain[at]
        if isinstance(first, _Affine) and isinstance(second, _Affine):
            chain[at - 1 : at + 1] = [first.then(second)]
    at = 1
    while at < len(chain) - 1:
        before, link, behind = chain[at - 1 : at + 2]
        if isinstance(link, _Affine) and isinstance(before, _Matrix):
            before.after(link)
        elif isinstance(link, _Affine) and isinstance(behind, _Matrix):
            behind.before(link)
        else:
            at += 1
            continue
        del chain[at]


def _part(link: _Link, like: Tensor) -> nn.Module:
    if isinstance(link, _Affine):
        part = ScaleShift(1)
        part.scale, part.shift = _stored(link.scale, like), _optional(link.shift, like)
        return part
    if isinstance(link, _Matrix):
        assert link.part is not None
        made: Any = copy.deepcopy(link.part)
        made.weight, made.bias = _stored(link.weight, like), _optional(link.bias, like)
        return made
    return link


def _closed(parts: list[nn.Module]) -> nn.Module:
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    return right if left is None else left if right is None else left + right


def _product(tensor: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if tensor is None else tensor * scale


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().double()


def _stored(tensor: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.to(like.dtype).contiguous(), requires_grad=False)


def _optional(tensor: Tensor | None, like: Tensor) -> nn.Parameter | None:
    return None if tensor is None else _stored(tensor, like)

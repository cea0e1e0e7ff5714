"""Which expert each row belongs to, in the three forms that models have it, and products that go by it.

    Dense      x [.., E, T, K]       every expert has T rows
    Sorted     x [S, K]              rows sorted by expert, and where each expert's end
    Gathered   x [S, K]              rows in any order, each beside a copy of its expert's matrix

A product with [E, N, K] and the choice of [E, r] are all that a branch of many experts needs of them. None of the three
computes a row for an expert that is not its own, and none asks for a value, so that they can be traced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noble_fx.exporting import leaves_this_process
from noble_fx.schema import GROUPED_PRODUCT
from noble_fx.torch_state import PLAIN_TENSORS, in_transform, is_exporting


class Groups(ABC):
    """The rows of E experts."""

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Each row times its expert's matrix, [.., K] -> [.., N], for a weight [E, N, K]."""

    @abstractmethod
    def rows(self, vectors: Tensor) -> Tensor:
        """[E, r] as something to add to rows, or to multiply them with: each row's own expert's."""


class Dense(Groups):
    """x [.., E, T, K]: the expert is an axis."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.matmul(x, weight.transpose(-2, -1))

    def rows(self, vectors: Tensor) -> Tensor:
        return vectors.unsqueeze(-2)


class Sorted(Groups):
    """x [S, K] sorted by expert; `offsets` [E] says where each expert's rows end."""

    def __init__(self, offsets: Tensor, experts: Tensor):
        self.offsets, self.experts = offsets, experts

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        product: Tensor = GROUPED_PRODUCT(x, weight.transpose(-2, -1), self.offsets)
        return product

    def rows(self, vectors: Tensor) -> Tensor:
        return taken(vectors, self.experts)


class Gathered(Groups):
    """x [S, K] in any order; `experts` [S] says whose each is. For few rows, or where no operator of ours may be."""

    def __init__(self, experts: Tensor):
        self.experts = experts

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(weight[self.experts], x.unsqueeze(-1)).squeeze(-1)

    def rows(self, vectors: Tensor) -> Tensor:
        return taken(vectors, self.experts)


def sorted_rows(offsets: Tensor, count: int) -> Sorted | Gathered:
    """Rows [count, ..] sorted by expert, of which only the `offsets` [E] are known."""
    rows = torch.arange(count, device=offsets.device, dtype=offsets.dtype)
    experts = torch.bucketize(rows, offsets, right=True).clamp(max=offsets.shape[0] - 1)
    return Sorted(offsets, experts) if has_operator(offsets) else Gathered(experts)


def ends(experts: Tensor, count: int) -> Tensor:
    """Where the rows of each of `count` experts end, int32 [count], for sorted `experts` [S]."""
    every = torch.arange(count, device=experts.device, dtype=experts.dtype)
    if is_exporting():  # the ONNX of bucketize knows no place behind the last
        return (experts.unsqueeze(0) <= every.unsqueeze(1)).sum(1, dtype=torch.int32)
    return torch.bucketize(every, experts, right=True, out_int32=True)


def has_operator(*tensors: Tensor) -> bool:
    """Whether `noble_fx::grouped_product` may run: for plain tensors, outside of transforms of functions, and where the
    program does not leave this process."""
    return all(type(t) in PLAIN_TENSORS for t in tensors) and not (in_transform() or leaves_this_process())


def taken(tensor: Tensor, at: Tensor) -> Tensor:
    """tensor[at] for [S] places along the first axis; the sum in its backward is deterministic on every device."""
    return tensor.index_select(0, at) if tensor.device.type == "cpu" else tensor[at]

"""What one direction of a layer does, as data: buffers, then launches and products in their order.

A tensor is a slot, the operands' first and then the buffers'; names are for reading alone, and gone when a call runs.
Rows are no part of it: a shape may say `rows`, and whoever runs it (`execute.py`) puts a number there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.codegen.kernel import Kernel
from noble_fx.errors import KernelError

Size = int | str  # a number, or the name of one: "rows", "programs"


@dataclass(frozen=True)
class Slot:
    """An argument of a kernel that is a tensor's address."""

    index: int


@dataclass(frozen=True)
class Buffer:
    """A tensor that the call allocates; `scratch` is touched by kernels alone, so a piece of a workspace will do."""

    slot: int
    shape: tuple[Size, ...]
    dtype: torch.dtype
    scratch: bool


@dataclass(frozen=True)
class Part:
    """One site's share [rows, r] of a contiguous tensor [sites, .., r]."""

    slot: int
    whole: int
    site: int
    row_bytes: int


@dataclass(frozen=True)
class Launch:
    """One kernel, its arguments in order: a slot, a stride, or the name of a number."""

    kernel: Kernel
    arguments: tuple[Slot | Size, ...]


@dataclass(frozen=True)
class Product:
    """out = left · right (+ bias) by the vendor's GEMM, each transposed first where its flag says so; or out += that.

    `wide`: in float32 whatever the operands are.
    """

    out: int
    left: int
    right: int
    left_transposed: bool = False
    right_transposed: bool = False
    bias: int | None = None
    into: bool = False
    wide: bool = False

    def __call__(self, tensors: list[Any]) -> None:
        left, right = tensors[self.left], tensors[self.right]
        if self.wide:
            left, right = left.float(), right.float()
        if self.left_transposed:
            left = left.t()
        if self.right_transposed:
            right = right.t()
        if self.into:
            tensors[self.out].addmm_(left, right)
        elif self.bias is None:
            tensors[self.out] = torch.mm(left, right)
        else:
            bias = tensors[self.bias]
            tensors[self.out] = torch.addmm(bias.float() if self.wide else bias, left, right)


@dataclass(frozen=True)
class Plain:
    """out = x Wᵀ + b, by the very call of the plain layer: with U = 0 the branch then changes no bit of it."""

    out: int
    x: int
    weight: int
    bias: int | None

    def __call__(self, tensors: list[Any]) -> None:
        bias = None if self.bias is None else tensors[self.bias]
        tensors[self.out] = F.linear(tensors[self.x], tensors[self.weight], bias)


@dataclass(frozen=True)
class ColumnSum:
    """out = Σ over the rows."""

    out: int
    of: int

    def __call__(self, tensors: list[Any]) -> None:
        tensors[self.out] = tensors[self.of].sum(0)


@dataclass(frozen=True)
class Cast:
    """out = the same numbers in another dtype."""

    out: int
    of: int
    dtype: torch.dtype

    def __call__(self, tensors: list[Any]) -> None:
        tensors[self.out] = tensors[self.of].to(self.dtype)


@dataclass(frozen=True)
class Stack:
    """out [sites, ..] = tensors of one shape, one after the other."""

    out: int
    of: tuple[int, ...]

    def __call__(self, tensors: list[Any]) -> None:
        tensors[self.out] = torch.stack([tensors[at] for at in self.of])


Operator = Product | Plain | ColumnSum | Cast | Stack  # a step that PyTorch runs
Step = Launch | Operator


@dataclass(frozen=True)
class Call:
    """Operands, buffers, steps and results of one direction of a layer, in one variant."""

    operands: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    parts: tuple[Part, ...]
    steps: tuple[Step, ...]
    results: dict[str, int]
    names: tuple[str, ...]  # of all slots
    tile: int  # rows of one program of those that `programs` counts

    def sizes(self, rows: Any) -> dict[str, Any]:
        """The numbers that go by a name."""
        return {"rows": rows, "programs": (rows + self.tile - 1) // self.tile}

    @property
    def launches(self) -> list[Launch]:
        """Its kernels, in their order."""
        return [step for step in self.steps if isinstance(step, Launch)]

    def seen_by_pytorch(self) -> set[int]:
        """The slots that a step of PyTorch's reads or writes."""
        seen = set()
        for step in self.steps:
            if not isinstance(step, Launch):
                seen |= {at for at in vars(step).values() if isinstance(at, int) and not isinstance(at, bool)}
        return seen


@dataclass
class CallBuilder:
    """Writes a call; tensors go by the names that the kernels' arguments give them."""

    kernels: Mapping[str, Kernel]
    operands: Mapping[str, Tensor]  # laid out as they will be when it is run
    tile: int
    _slots: dict[str, int] = field(default_factory=dict)
    _buffers: list[Buffer] = field(default_factory=list)
    _parts: list[Part] = field(default_factory=list)
    _steps: list[Step] = field(default_factory=list)
    _widths: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = {name: at for at, name in enumerate(self.operands)}

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def buffer(self, name: str, shape: Sequence[Size], dtype: torch.dtype, scratch: bool = True) -> str:
        """A new tensor of that name."""
        self._buffers.append(Buffer(self._new(name), tuple(shape), dtype, scratch))
        return name

    def part(self, name: str, whole: str, site: int, row_bytes: int) -> str:
        """One site's share of a contiguous tensor [sites, .., r]."""
        self._parts.append(Part(self._new(name), self._slots[whole], site, row_bytes))
        return name

    def launch(self, name: str) -> None:
        """A kernel over the rows, its arguments bound by their names; raises `KernelError` where nothing is bound."""
        self.launch_as(self.kernels[name])

    def launch_as(self, kernel: Kernel, names: Mapping[str, str] = MappingProxyType({})) -> None:
        """A kernel on other tensors than its arguments' names say: `names` says which, of a kernel of another layer."""
        self._steps.append(
            Launch(kernel, tuple(self._argument(argument.name, kernel, names) for argument in kernel.arguments))
        )

    def dense_rows(self, name: str, width: int) -> None:
        """That tensor, which a step of PyTorch's makes, is [rows, width] and contiguous: kernels may read it."""
        self._widths[name] = width

    def operator(self, make: Callable[..., Operator], out: str, *others: str | None, **settings: Any) -> None:
        """A step of PyTorch's: `make(out, *others, **settings)`, tensors by name."""
        slots = [None if name is None else self._slots[name] for name in others]
        if out not in self._slots:
            self._new(out)
        self._steps.append(make(self._slots[out], *slots, **settings))

    def product(self, out: str, left: str, right: str, bias: str | None = None, **settings: Any) -> None:
        """out = left · right, or what the settings of `Product` say."""
        bias_slot = None if bias is None else self._slots[bias]
        self.operator(Product, out, left, right, bias=bias_slot, **settings)

    def finish(self, results: Mapping[str, str]) -> Call:
        """The call that answers with these tensors, each by the name of what it is."""
        answer = {name: self._slots[tensor] for name, tensor in results.items()}
        return Call(
            operands=tuple(self.operands),
            buffers=tuple(self._buffers),
            parts=tuple(self._parts),
            steps=tuple(self._steps),
            results=answer,
            names=tuple(self._slots),
            tile=self.tile,
        )

    def _new(self, name: str) -> int:
        self._slots[name] = slot = len(self._slots)
        return slot

    def _argument(self, name: str, kernel: Kernel, names: Mapping[str, str]) -> Slot | Size:
        tensor, stride, axis = name.rpartition("_stride_")
        tensor = names.get(tensor, tensor)
        if stride and tensor in self.operands:
            found: int = self.operands[tensor].stride(int(axis))
            return found
        if stride and tensor in self._widths and axis == "0":
            return self._widths[tensor]
        tensor = names.get(name.removesuffix("_ptr"), name.removesuffix("_ptr"))
        if name.endswith("_ptr") and tensor in self._slots:
            return Slot(self._slots[tensor])
        if name in ("rows", "programs"):
            return name
        raise KernelError(f"{kernel.name} needs {name!r}, to which nothing is bound; please report it")

"""One generated kernel: its text, its arguments, its grid, and what it moves and computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from noble_fx.codegen.plan import Layer


@dataclass(frozen=True)
class Argument:
    """A parameter of a kernel; its name says what is bound to it.

    `weight_ptr` is the tensor called "weight", `weight_stride_0` that tensor's stride along axis 0, any other name an
    integer that the launcher knows ("rows", "programs"). `type` is Triton's: "*bf16", "*fp32", "i32", "i64". Where it
    belongs to a tensor, `tensor` is what every site calls that one, and `axis` which stride it is. `written`: the
    kernel writes there.
    """

    name: str
    type: str
    tensor: str = ""
    site: int = 0
    axis: int | None = None
    written: bool = False

    @property
    def plain(self) -> str:
        """The name without the site's number: what a body calls it that serves one site of several."""
        if not self.tensor:
            return self.name
        return f"{self.tensor}_ptr" if self.axis is None else f"{self.tensor}_stride_{self.axis}"


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads or writes: of one site of the layer, or the one that all sites share.

    `type` is an element's ("bf16"), `letter` what the maths calls it, `note` what else a reader should know.
    """

    tensor: str
    type: str
    shape: tuple[int | str, ...]
    name: str
    site: int = 0
    letter: str = ""
    written: bool = False
    note: str = ""

    @property
    def pointer(self) -> Argument:
        """Its address."""
        return Argument(f"{self.name}_ptr", f"*{self.type}", self.tensor, self.site, written=self.written)

    def stride(self, axis: int) -> Argument:
        """Its stride along an axis, in elements."""
        return Argument(f"{self.name}_stride_{axis}", "i32", self.tensor, self.site, axis)


def shared_operand(tensor: str, kind: str, shape: tuple[int | str, ...], written: bool = False) -> Operand:
    """A tensor that belongs to no site, as x and dx do."""
    return Operand(tensor, kind, shape, tensor, written=written)


def site_operand(
    layer: Layer, site: int, tensor: str, kind: str, shape: tuple[int | str, ...], written: bool = False, note: str = ""
) -> Operand:
    """A tensor of one site, by the name that the arguments give it."""
    letter = LETTERS.get(tensor, "")
    return Operand(tensor, kind, shape, layer.name(tensor, site), site, letter, written, note)


def moved_bytes(operands: Iterable[Operand]) -> tuple[int, int]:
    """(a row, once): what reading or writing every tensor once moves; partial sums are few and not counted."""
    per_row = once = 0
    for operand in operands:
        first, *sizes = operand.shape or (1,)
        size = _ITEMSIZE[operand.type] * prod(int(size) for size in sizes)
        per_row += size if first == "rows" else 0
        once += size * first if isinstance(first, int) else 0
    return per_row, once


_ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "i64": 8, "i32": 4, "i8": 1, "i1": 1}
LETTERS = {"weight": "W", "bias": "b", "down": "D", "down_bias": "d", "up": "U"}  # as the layer's formula has them


@dataclass(frozen=True)
class Kernel:
    """The text of one file that holds one `@triton.jit` function called `name`, and how to launch it.

    The grid has one dimension: `ceil(rows / row_tile) * blocks`, or `blocks` where `row_tile` is 0. FLOPs and bytes
    (each tensor once) are the floor of what it does: per row, and once for what does not grow with the rows.
    `persistent`: fewer programs do as well, each of which then walks over several tiles. `descriptors`: it makes tensor
    descriptors, so operands begin at multiples of 16 bytes, and its launcher lends it memory.
    """

    name: str
    source: str
    arguments: tuple[Argument, ...]
    row_tile: int
    blocks: int
    warps: int
    stages: int
    flops_per_row: int = 0
    bytes_per_row: int = 0
    bytes_once: int = 0
    persistent: bool = False
    descriptors: bool = False

    def programs(self, rows: int, most: int | None = None) -> int:
        """How many programs one launch starts; `most`: of one that is persistent, as a GPU has multiprocessors."""
        if not self.row_tile:
            return self.blocks
        programs = -(-rows // self.row_tile) * self.blocks
        return min(programs, most) if self.persistent and most else programs

"""One generated kernel: its text, its arguments, its grid, and what it moves and computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """A parameter of a kernel; its name says what is bound to it.

    `weight_ptr` is the tensor called "weight", `weight_stride_0` that tensor's stride along axis 0, any other name an
    integer that the launcher knows ("rows", "programs"). `type` is Triton's: "*bf16", "*fp32", "i32", "i64".
    """

    name: str
    type: str


@dataclass(frozen=True)
class Kernel:
    """The text of one file that holds one `@triton.jit` function called `name`, and how to launch it.

    The grid has one dimension: `ceil(rows / row_tile) * blocks`, or `blocks` where `row_tile` is 0. FLOPs and bytes
    (each tensor once) are the floor of what it does: per row, and once for what does not grow with the rows.
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

    def programs(self, rows: int) -> int:
        """How many programs one launch starts."""
        if not self.row_tile:
            return self.blocks
        return -(-rows // self.row_tile) * self.blocks

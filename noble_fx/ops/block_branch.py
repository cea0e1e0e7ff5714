"""`noble_fx::block_branch`: the place of a branch around a block, in a graph that is captured without branches.

    block_branch(x [.., C], block) -> zeros [.., C]

So y + block_branch(x) is y, in values and in gradients; passes put the branch there, or take the place out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noble_fx.schema import library


def block_branch(x: Tensor, block: str) -> Tensor:
    """Zeros like x."""
    return torch.zeros_like(x)


def _no_gradient(ctx: Any, grad: Tensor) -> tuple[None, None]:
    return None, None


library.impl("block_branch", block_branch, "CompositeExplicitAutograd")
torch.library.register_fake("noble_fx::block_branch", block_branch, lib=library)
torch.library.register_autograd("noble_fx::block_branch", _no_gradient, lib=library)

"""What a linear map and its branch cost a row: the FLOPs of their matrix products, two a multiply-add.

    x Wᵀ  2 K N        σ(x Dᵀ) Uᵀ  2 r (K + N), and 2 a b for each matrix [a, b] of σ

A row meets each matrix of a branch once, so a branch's count is two for every value in a matrix of it.
"""

from __future__ import annotations

from typing import Any

from noble_fx.branches.base import Branch
from noble_fx.sites.site import Site


def base_flops(site: Site, layer: Any = None) -> int:
    """Of the map itself; a 1×1 convolution in groups multiplies each channel with those of its group alone.

    A whole block is no map: its own products are not counted.
    """
    if site.is_block:
        return 0
    if site.base:
        return site.base_row_flops
    return 2 * site.in_features * site.out_features // getattr(layer, "groups", 1)


def branch_flops(branch: Branch) -> int:
    """Of a branch as it is now."""
    return 2 * sum(parameter.numel() for parameter in branch.parameters() if parameter.ndim == 2)

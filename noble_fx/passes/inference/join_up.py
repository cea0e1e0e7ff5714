"""Make the base product and the branch's last one a single product, for inference.

    x Wᵀ + b + t Uᵀ  =  [x t] [W U]ᵀ + b        t = σ(x Dᵀ + d)

y is then written once, as in the kernel `linear_up_forward`, and x is copied once to stand beside t. Its rows become r
longer, which is why this can cost less than the plain layer: rows of a multiple of 4 KiB (1024 float32) fall on the
same few sets of a CPU's first cache, and a product without packing reads a dozen of them at a time. For the same reason
a site whose rows would get such a length stays as it is. `docs/architecture.md` has the measurements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from noble_fx.ops.operands import Operands
from noble_fx.passes.build import Build
from noble_fx.passes.example import Example, branch_operands
from noble_fx.passes.history import Skip
from noble_fx.passes.inference.join_down import STORED_TWICE
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import JOINED_UP, LINEAR

_SAME_SETS = 4096  # bytes: 64 sets of 64-byte lines


def _joined(m: Any, x: Any) -> Any:
    down, down_bias, _, act, key = branch_operands(m.noble)
    return JOINED_UP(x, m.joined_weight, m.bias, down, down_bias, act, key)


_EXAMPLE = Example(
    before=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
    after=_joined,
    truth=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
)


@rule(LINEAR, example=_EXAMPLE)
def join_up(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """linear(x, W, b, D, d, U, σ)  ->  joined_up(x, [W U], b, D, d, σ), where W and U are read here alone"""
    operands: Operands[Any] = Operands.of_node(node)
    (site,) = operands.sites
    matrices = graph.constants(site.weight, site.up)
    if isinstance(matrices, Skip):
        return matrices
    if not graph.sole_reader(site.weight, node) or not graph.sole_reader(site.up, node):
        return Skip(STORED_TWICE)
    w, u = matrices
    if w.dtype != u.dtype:
        return Skip(f"W is {w.dtype} and U {u.dtype}")
    width = w.shape[1] + u.shape[1]
    if width * w.element_size() % _SAME_SETS == 0:
        return Skip(f"rows of {width} numbers, a multiple of 4 KiB, fall on the same sets of the cache")
    joined = build.constant("joined_weight", torch.cat([w, u], dim=1), beside=site.weight)
    act = list(site.act)
    return build.call(JOINED_UP, operands.x, joined, site.bias, site.down, site.down_bias, act, operands.key)

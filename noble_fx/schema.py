"""The signatures of the project's operators, which graphs name and the files of `ops/` implement.

linear                 one linear map with its branch -> y
linear_forward         the same -> (y, h), where h = x Dᵀ + d, in float32 or better, is what backward
                       needs besides x
linear_backward        one gradient per input; an empty tensor where `needs` says no
joined_down            the same for inference, W and D one matrix [N + r, K] -> y
joined_up              the same for inference, W and U one matrix [N, K + r] -> y

factorized_linear      one linear map whose W is A B, with its branch -> y; _forward and _backward as above, z = x Bᵀ
joined_factorized      the same for inference, B and D one matrix [k + r, K], A and U one [N, k + r] -> y

linear_group           G linear maps of one x, of one rank and one σ, each with its branch -> y of each; N may differ
linear_group_forward   the same -> (y of each, h [G, .., r], contiguous, in float32 or better)
linear_group_backward  one gradient per input: x, weight…, bias…, down…, down_bias…, up…, act…

grouped_product        rows sorted by expert, each times its expert's matrix: x [S, K], weight [E, K, N] -> [S, N]
grouped_outer          its derivative by the weight: x [S, K], y [S, N] -> [E, K, N]

block_branch           where the branch around the block of that name belongs, in a graph that has none yet -> zeros

A group is all with a bias or all without: `bias` and `down_bias` then are empty lists, as `bias` is None for one linear
map. `needs` and the gradients have G places for either nonetheless (False, empty tensor), in the flat order of
`ops/operands.py`, so a place means the same whatever is absent. `act` is the tensors of the first site's σ, then those
of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from noble_fx.torch_state import nothing_interposes

_INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor down, Tensor? down_bias, Tensor up, Tensor[] act, str act_key"
_GROUP = (
    "Tensor x, Tensor[] weight, Tensor[] bias, Tensor[] down, Tensor[] down_bias, Tensor[] up, Tensor[] act, "
    "str act_key"
)

_FACTORIZED = (
    "Tensor x, Tensor base_down, Tensor base_up, Tensor? bias, Tensor down, Tensor? down_bias, Tensor up, "
    "Tensor[] act, str act_key"
)

library = torch.library.Library("noble_fx", "DEF")
library.define(f"linear({_INPUTS}) -> Tensor")
library.define(f"linear_forward({_INPUTS}) -> (Tensor, Tensor)")
library.define("joined_down(Tensor x, Tensor weight, Tensor? bias, Tensor up, Tensor[] act, str act_key) -> Tensor")
library.define(
    "joined_up(Tensor x, Tensor weight, Tensor? bias, Tensor down, Tensor? down_bias, Tensor[] act, "
    "str act_key) -> Tensor"
)
library.define(
    "linear_backward(Tensor dy, Tensor x, Tensor h, Tensor weight, Tensor down, Tensor up, Tensor[] act, str act_key, "
    "bool[] needs) -> Tensor[]"
)
library.define(f"factorized_linear({_FACTORIZED}) -> Tensor")
library.define(f"factorized_linear_forward({_FACTORIZED}) -> (Tensor, Tensor, Tensor)")
library.define(
    "factorized_linear_backward(Tensor dy, Tensor x, Tensor z, Tensor h, Tensor base_down, Tensor base_up, "
    "Tensor down, Tensor up, Tensor[] act, str act_key, bool[] needs) -> Tensor[]"
)
library.define(
    "joined_factorized(Tensor x, Tensor down, Tensor? down_bias, Tensor up, Tensor? bias, int rank, "
    "Tensor[] act, str act_key) -> Tensor"
)
library.define(f"linear_group({_GROUP}) -> Tensor[]")
library.define(f"linear_group_forward({_GROUP}) -> (Tensor[], Tensor)")
library.define(
    "linear_group_backward(Tensor[] dy, Tensor x, Tensor h, Tensor[] weight, Tensor[] down, Tensor[] up, Tensor[] act, "
    "str act_key, bool[] needs) -> Tensor[]"
)
library.define("grouped_product(Tensor x, Tensor weight, Tensor offsets) -> Tensor")
library.define("grouped_outer(Tensor x, Tensor y, Tensor offsets) -> Tensor")

library.define("block_branch(Tensor x, str block) -> Tensor")

LINEAR = torch.ops.noble_fx.linear.default
LINEAR_GROUP = torch.ops.noble_fx.linear_group.default
FACTORIZED = torch.ops.noble_fx.factorized_linear.default
JOINED_FACTORIZED = torch.ops.noble_fx.joined_factorized.default
JOINED_DOWN = torch.ops.noble_fx.joined_down.default
JOINED_UP = torch.ops.noble_fx.joined_up.default
GROUPED_PRODUCT = torch.ops.noble_fx.grouped_product.default
BLOCK_BRANCH = torch.ops.noble_fx.block_branch.default


RULES: dict[Any, Callable[..., Any]] = {}  # the autograd rules of operators, which `ops/` fills in


def call(operator: Any, x: Any, *arguments: Any) -> Any:
    """`operator(x, *arguments)`, by its autograd rule where the dispatcher would find nothing else to do.

    For an operator that is written in Python the dispatcher takes as long as a whole plain layer.
    """
    return RULES[operator](x, *arguments) if nothing_interposes(x) else operator(x, *arguments)

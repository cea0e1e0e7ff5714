"""The signatures of the project's operators. `runtime/operator.py` implements them; graphs only name them.

linear           one linear map with its branch -> y
linear_forward   the same -> (y, h), where h = x Dᵀ + d is what backward needs besides x
joined_linear    the same for inference, W and D one matrix [N + r, K] -> y
linear_backward  one gradient per input; an empty tensor where `needs` says no
"""

from __future__ import annotations

import torch

_INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor down, Tensor? down_bias, Tensor up, Tensor[] act, str act_key"

library = torch.library.Library("noble_fx", "DEF")
library.define(f"linear({_INPUTS}) -> Tensor")
library.define(f"linear_forward({_INPUTS}) -> (Tensor, Tensor)")
library.define("joined_linear(Tensor x, Tensor weight, Tensor? bias, Tensor up, Tensor[] act, str act_key) -> Tensor")
library.define(
    "linear_backward(Tensor dy, Tensor x, Tensor h, Tensor weight, Tensor down, Tensor up, Tensor[] act, str act_key, "
    "bool[] needs) -> Tensor[]"
)

LINEAR = torch.ops.noble_fx.linear.default
JOINED = torch.ops.noble_fx.joined_linear.default

"""Which linear layers are the base model's own: what a tool that converts a model may take, and no part of a branch."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


def base_linears(module: nn.Module, fqn: str) -> bool:
    """Whether the module called `fqn` is an `nn.Linear` of the base model, with a branch or without; False in a branch.

    A `filter_fn` for torchao: `quantize_(model, config, filter_fn=noble_fx.base_linears)`, and for
    `convert_to_float8_training(model, module_filter_fn=noble_fx.base_linears)`. An attention's out_proj, whose weight
    `nn.MultiheadAttention` reads past the layer, is left out.
    """
    if "noble" in fqn.split("."):
        return False
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)

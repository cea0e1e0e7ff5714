"""PyTorch's inference fast path of encoder layers, which reads the weights of linears past their forward."""

from __future__ import annotations

from torch import nn

from noble_fx.layers.base import Augmented
from noble_fx.layers.structured import Structured


def keep_from_fast_path(model: nn.Module) -> None:
    """nn.TransformerEncoderLayer's inference fast path reads the weights of its linears past their forward."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):  # it makes nested tensors for that path alone
            augmented = any(isinstance(part, Augmented | Structured) for part in module.modules())
            module.use_nested_tensor = module.enable_nested_tensor and not augmented
        if isinstance(module, nn.TransformerEncoderLayer):
            augmented = any(isinstance(part, Augmented | Structured) for part in module.modules())
            # The layer's own flag: 1 and 2 allow the fast path for that activation, 0 keeps to the layer's Python code.
            allowed = {nn.functional.relu: 1, nn.ReLU: 1, nn.functional.gelu: 2, nn.GELU: 2}
            kind = module.activation if module.activation in allowed else type(module.activation)
            module.activation_relu_or_gelu = 0 if augmented else allowed.get(kind, 0)

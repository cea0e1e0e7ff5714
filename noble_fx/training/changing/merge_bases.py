"""`noble_fx.merge_bases`: every W as one dense matrix again."""

from __future__ import annotations

from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.attach.bases import structured_layers
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.errors import ConfigError
from noble_fx.layers.restructure import densify
from noble_fx.torch_versions import forget_compiled


def merge_bases(model: nn.Module) -> nn.Module:
    """Give every layer its W back as one matrix, in place, which is what its base is now; returns the model.

    Branches stay. Optimizers hold the parts still: build them anew. Raises `ConfigError` where no W has another form,
    and `CaptureError` for a wrapped model; the model is then as it was.
    """
    layers = structured_layers(model)
    if not layers:
        raise ConfigError("no weight of the model has another form, so there is nothing to merge")
    check_unwrapped(model, "change", layers)
    forget_compiled()
    with restored_on_error(model):
        for layer in layers.values():
            densify(layer)
        for branch in named_branches(model).values():
            branch.config = branch.config.without_base()
        note(model)
    return model

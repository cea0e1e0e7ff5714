"""A layer gets another form of W, and back: its class is swapped, the object stays."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from noble_fx.bases.base import Base
from noble_fx.branches.base import Branch
from noble_fx.errors import Refusal
from noble_fx.layers.base import Augmented, plain_class
from noble_fx.layers.made_class import made_class
from noble_fx.layers.registry import obstacle, row_of, unsuitable_weight, why_eager
from noble_fx.layers.structured import Structured, StructuredTransposed

_MIXINS = {"[N, K]": Structured, "[K, N]": StructuredTransposed}


def why_dense(layer: nn.Module) -> Refusal | None:
    """Why W of this layer cannot have another form, or None."""
    row = row_of(layer)
    plain: Any = plain_class(layer)
    if isinstance(layer, Structured):
        return Refusal("its weight has another form already")
    if row is None or row.mixin is None or row.layout not in _MIXINS or row.parameters:
        return Refusal(f"{plain.__name__} is no linear layer of which this is known")
    known = next((c for c in plain.__mro__ if row.cls in (c, f"{c.__module__}.{c.__qualname__}")), None)
    if known is None or plain.forward is not known.forward:
        return Refusal(f"{plain.__name__} has a forward of its own, which reads its weight")
    if refusal := unsuitable_weight(layer) or obstacle(layer):
        return refusal
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return Refusal(f"the weight of {plain.__name__} is computed, not a parameter")
    return None


def matrix_of(layer: Any) -> Tensor:
    """W [N, K] of a layer whose weight is a matrix, a view of its parameter."""
    row = row_of(layer)
    weight: Tensor = layer._parameters["weight"]
    return weight.t() if row is not None and row.layout == "[K, N]" else weight


def structure(layer: Any, base: Base, bias: Tensor | None) -> None:
    """Give a layer `base` [N, K] in the place of its weight, and b [N] or none; the object stays, with its branch."""
    row = row_of(layer)
    assert row is not None
    kind = made_class(_MIXINS[row.layout], plain_class(layer))
    del layer._parameters["weight"]
    layer._parameters["bias"] = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    layer.__class__ = made_class(layer._mixin, kind) if isinstance(layer, Augmented) else kind
    layer.base = base
    _prepare(layer)


def why_eager_with(layer: Any, base: Base) -> Refusal | None:
    """What `why_eager` would say if W of this layer had that form; the layer stays as it is."""
    twin: Any = object.__new__(type(layer))
    vars(twin).update({**vars(layer), "_parameters": dict(layer._parameters), "_modules": dict(layer._modules)})
    structure(twin, base, twin._parameters["bias"])
    return why_eager(twin)


def exchange_base(layer: Any, base: Base) -> None:
    """Give a layer that has a base another one, which learns and runs as that did."""
    old = layer.base
    learns = any(parameter.requires_grad for parameter in old.parameters())
    layer.base = base.train(old.training).requires_grad_(learns)
    _prepare(layer)


def densify(layer: Any) -> None:
    """Give a layer its weight back as a matrix, and its class."""
    learns = any(parameter.requires_grad for parameter in layer.base.parameters())
    layer.base.eval()  # all of its parts: one that drops some in training is no other matrix for that
    weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=learns)
    dense = plain_class(layer)
    del layer._modules["base"]
    layer.__class__ = made_class(layer._mixin, dense) if isinstance(layer, Augmented) else dense
    # First of its parameters, where the layer's class has it.
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer._parameters.update({"weight": weight, **others})
    _prepare(layer)


def _prepare(layer: Any) -> None:
    """Let the branch, where there is one, find out again how it runs."""
    branch = layer._modules.get("noble")
    if isinstance(branch, Branch):
        eager = why_eager(layer)
        branch.prepare("fuse=False" if not branch.config.fuse else eager.reason if eager else "")

"""What every layer with a branch is, and what is known of a layer class: one `LayerRow` each.

Its class is one that is made of a mixin and the class that the layer had (`made_class.py`).

    Linear        ->  NobleLinear(Augmented, Linear)
    FalconLinear  ->  NobleFalconLinear(Augmented, FalconLinear)      runs FalconLinear.forward, and adds its branch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noble_fx.branches.base import Branch
from noble_fx.distributed import is_distributed
from noble_fx.errors import CaptureError, Refusal
from noble_fx.layers.fused import fused_call
from noble_fx.layers.made_class import Made, made_class
from noble_fx.torch_state import autocast_is_on


class Augmented(Made):
    """A layer with a branch in `noble`: a mixin in front of the layer's own class. Its weight is [N, K]."""

    noble: Branch
    _prefix = "Noble"

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        """W as [N, K], a view of a weight of this layer."""
        return weight

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        branch = self.noble
        if branch.enabled and not branch.unfused and len(args) + len(kwargs) == 1:
            fused = fused_call(self, branch, args[0] if args else kwargs.get(self._input_name))
            if fused is not None:
                return fused
        y = super().forward(*args, **kwargs)  # type: ignore[misc]
        return self.beside(y, args[0] if args else kwargs[self._input_name]) if branch.enabled else y

    def beside(self, y: Any, x: Tensor) -> Tensor:
        """y, which the layer's own forward made of x, and its branch; raises `CaptureError` where y is no W x."""
        if x.is_nested and x.layout is torch.strided:  # whose operators know no broadcast, which σ needs
            return y + torch.nested.as_nested_tensor([self.branch_output(part) for part in x.unbind()])
        added = self.branch_output(self.in_stored_dtype(x))
        if not isinstance(y, Tensor) or y.shape != added.shape:
            got = list(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
            name = plain_class(self).__qualname__  # type: ignore[arg-type]
            raise CaptureError(
                f"{name}.forward gives {got} where its linear map gives {list(added.shape)}, so no branch can be added "
                "to it; leave such layers out with exclude=…"
            )
        return y + added.to(y.dtype)

    def branch_output(self, x: Tensor) -> Tensor:
        """What the branch adds to the layer's result."""
        if is_distributed(x) and not any(map(is_distributed, self.noble.parameters())):
            raise CaptureError(
                f"a {plain_class(self).__name__} was laid over ranks without its branch; do that by "  # type: ignore[arg-type]
                "parallelize_module(model, mesh, noble_fx.noble_plan(model, plan)), or transform afterwards"
            )
        output: Tensor = self.noble(x)
        return output

    def in_stored_dtype(self, x: Tensor) -> Tensor:
        """A layer that casts its weight to x's dtype takes any; its branch takes the one that it is stored in."""
        weight = self._parameters.get("weight")  # type: ignore[attr-defined]
        if weight is None or weight.dtype == x.dtype or autocast_is_on(x.device.type):
            return x
        return x.to(self.noble.dtype)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in nn.Module; a plan for ranks that takes the branch's parameters for the layer's own is refused."""
        if "." in name:
            raise CaptureError(
                f"a parallel plan takes {name!r} for a parameter of the {plain_class(self).__name__} beside it; let it "  # type: ignore[arg-type]
                "lay out branches too: parallelize_module(model, mesh, noble_fx.noble_plan(model, plan))"
            )
        super().register_parameter(name, param)  # type: ignore[misc]


def class_with_branch(mixin: type[Augmented], plain: type[nn.Module]) -> type[Augmented]:
    """The class of a `plain` layer with a branch, the same one each time."""
    kind: type[Augmented] = made_class(mixin, plain)
    return kind


def plain_class(layer: nn.Module) -> type[nn.Module]:
    """The class that the layer had before it got a branch or another form of W."""
    if not isinstance(layer, Made):
        return type(layer)
    return next(base for base in type(layer).__mro__ if issubclass(base, nn.Module) and not issubclass(base, Made))


def class_without_branch(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer once its branch is gone: the one that it had, parametrized as it is today."""
    plain = next(c for c in type(layer).__mro__ if issubclass(c, nn.Module) and not issubclass(c, Augmented))
    if not parametrize.is_parametrized(layer):
        return plain
    # torch's class of a parametrized module holds a property for each such tensor, and how it is copied.
    own = {name: value for name, value in vars(type(layer)).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{plain.__name__}", (plain,), own)


def _nothing(layer: Any) -> Refusal | None:
    return None


def _own_name(layer: Any) -> str:
    return plain_class(layer).__name__


@dataclass(frozen=True)
class LayerRow:
    """What is known of one layer class and its subclasses.

    `shape` gives (K, N), or None for an instance that is no linear map of its last dimension (a 3×3 convolution);
    `obstacle` why no branch can be there; `eager` why the operator cannot run it, asked where its forward is the
    class's own. `mixin` None: never a branch. `parameters`: weights inside that are linear maps of their own.
    """

    cls: type | str  # by name where the library should be imported by its users alone
    shape: Callable[[Any], tuple[int, int] | None]
    mixin: type[Augmented] | None = Augmented
    layout: str = "[N, K]"  # of the weight
    title: Callable[[Any], str] = _own_name
    obstacle: Callable[[Any], Refusal | None] = _nothing
    eager: Callable[[Any], Refusal | None] = _nothing
    beside: bool = True  # whether a branch is right beside a forward of a subclass's own, which it may be for x [.., K]
    parameters: tuple[str, ...] = ()
    bias: str = "bias"  # the name of b, which may be None; "{parameter}_bias" where each of `parameters` has its own
    recognises: Callable[[Any], bool] | None = None  # for classes without a common base: whether a module is of these
    registered: bool = False  # by a user

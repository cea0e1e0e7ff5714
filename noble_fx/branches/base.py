"""What every kind of branch is: the one interface that layers, passes, the optimizer's groups and files know.

    y = x Wᵀ + b + branch(x)          x [.., K]   W [N, K]   branch(x) [.., N]

A kind is a subclass of `Branch` in a file of its own. It must say `forward` and `reset_parameters`; everything else has
an answer here that is right for any kind: parameters that learn like the base's, no fused form, nothing to fold.

    class Scaled(Branch):
        kind = "scaled"

        def __init__(self, in_features, out_features, rank, config, role="other"):
            super().__init__(in_features, out_features, rank, config, role)
            self.down = nn.Parameter(torch.empty(rank, in_features))
            ...
            self.reset_parameters()
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noble_fx.branches.adapters import adapters_of
from noble_fx.branches.bound import Bound, FusedForm
from noble_fx.branches.channels import Resized
from noble_fx.branches.drawing import drawing
from noble_fx.branches.factors import Factors
from noble_fx.branches.masks import has_other_names
from noble_fx.branches.own_tensors import refill
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, Refusal

ACTIONS = ("add",)  # what is done at a site: a branch added beside the layer
NOT_BUILT = "its branch was never prepared"
_OF_ITS_FORWARD = (
    *("fused_form", "merged", "fold", "stages", "resized", "bottleneck", "silence", "factors", "before_up"),
    *("takes_adapters", "shortened", "with_sigma"),
)
_LIVE: weakref.WeakSet[Branch] = weakref.WeakSet()


@dataclass(frozen=True)
class Rate:
    """How a parameter learns: its learning rate over the base's, and whether the optimizer's weight decay applies."""

    lr: float = 1.0
    decay: bool = True


class Branch(nn.Module):
    """A learnable map [.., K] -> [.., N] of rank `rank` beside a linear map; the base of every kind."""

    kind: ClassVar[str] = ""  # the name that `transform(branch=…)` takes; the class's own where it says none
    action: ClassVar[str] = "add"
    # The dimensions of its own tensors, {"down": ("r", "K")}, which a plan for ranks cuts where it cuts N or K. What is
    # not named is whole on every rank, which is right for any kind.
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    settings: ClassVar[frozenset[str]] = frozenset()  # of `NobleConfig`, those that are for this kind alone
    takes_adapters: ClassVar[bool] = False  # whether linear maps may be put beside it, as its child `adapters`
    folded = False  # True once constants were folded for inference, after which it cannot be drawn or saved
    drawn_as = ""  # the name that its seed goes by
    lacks_values = False  # made on the meta device, and not drawn since
    origin: dict[str, Tensor] | None = (
        None  # ω and φ as they were drawn, kept once somebody has asked how far they moved
    )

    def __init__(self, in_features: int, out_features: int, rank: int, config: NobleConfig, role: str = "other"):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.config, self.role = config, role
        self.enabled = True  # False inside noble_fx.disabled()
        self.unfused = NOT_BUILT  # why the operator is not used; "" where it is
        self.key = ""  # how a fused site names what is computed in the bottleneck
        self.bound: Bound | None = None  # what the operator takes of it, where it may run
        self.site: Any = None  # the chosen `Site`, and the `Choice` that it is a part of
        self.choice: Any = None
        _LIVE.add(self)

    def __init_subclass__(cls, **settings: Any) -> None:
        # What a parent says of its forward is not said of another: a kind that replaces it says these anew, or runs as
        # the module that it is.
        super().__init_subclass__(**settings)
        cls.kind = cls.kind or cls.__name__
        if "forward" in vars(cls):
            for name in _OF_ITS_FORWARD:
                if name not in vars(cls):
                    setattr(cls, name, getattr(Branch, name))

    # --- what a kind may say better -----------------------------------------------------------------------------------

    @classmethod
    def check(cls, config: NobleConfig) -> None:
        """Refuse settings that no layer could have, before a model is looked at; raises `ConfigError`."""

    @property
    def label(self) -> str:
        """What it computes in its bottleneck, in a word."""
        return self.kind

    def parameter_roles(self) -> Iterator[tuple[str, nn.Parameter, Rate]]:
        """(role, parameter, rate) of every parameter; roles are the names of the optimizer's groups."""
        for name, parameter in self.named_parameters():
            yield name, parameter, Rate()

    def fused_form(self) -> FusedForm | Refusal:
        """Its operands for `noble_fx::linear`, or why it runs as the module that it is."""
        return Refusal(f"branches of kind {self.kind!r} have no fused form")

    def merged(self) -> tuple[Tensor, Tensor | None] | Refusal:
        """(ΔW [N, K], Δb [N] or None) where the branch is an affine map of x; or why it is not."""
        return Refusal(f"branches of kind {self.kind!r} are no affine map of their input")

    def factors(self) -> list[Factors] | Refusal:
        """The D, U and s whose s U D are its map together, x [.., K] -> [.., N]; or why it is no sum of such products.

        The optimizer's rules for pairs of matrices (`training/rules/`) work on these.
        """
        return Refusal(f"branches of kind {self.kind!r} do not say that they are a product of two matrices")

    def fold(self) -> Refusal | None:
        """Fold constants for inference where it stands (and set `folded`); or why there is nothing to fold."""
        return Refusal(f"branches of kind {self.kind!r} have no constants to fold")

    def resized(self, rank: int, inputs: Tensor | None = None) -> Resized | Refusal:
        """A new branch of another rank, as near to this one as it can be (a larger one: equal); or why there is none.

        `inputs` are rows of what `bottleneck` gave for inputs of the model, to be right for.
        """
        return Refusal(f"branches of kind {self.kind!r} do not say how their rank changes")

    def shortened(self, rank: int, factor: float, inputs: Tensor | None = None) -> Resized | Refusal:
        """A new branch of its first `rank` channels, each matrix that reads channels times `factor`; or why none.

        `inputs` as for `resized`, to say how far off it is.
        """
        return Refusal(f"branches of kind {self.kind!r} do not say what their first channels are")

    def with_sigma(
        self, change: Callable[[nn.Module], nn.Module | Refusal], columns: Tensor | None = None
    ) -> Refusal | None:
        """Put change(σ) in σ's place, and U's columns times `columns` [r]; or why it cannot be, and nothing is done."""
        return Refusal(f"branches of kind {self.kind!r} have no σ that is known")

    def sigma(self) -> nn.Module | None:
        """σ, a module on [.., r], where there is one."""
        return None

    def bottleneck(self, x: Tensor) -> Tensor:
        """What `resized` wants to know of an input [.., K] of the branch."""
        return x

    def before_up(self, x: Tensor) -> Tensor | Refusal:
        """t [.., r] of x [.., K] where the result is t Uᵀ and a constant, U being `up`; or why it is not."""
        return Refusal(f"branches of kind {self.kind!r} do not say what their last matrix reads")

    def silence(self) -> Refusal | None:
        """Make the result zero, in place, in a way that learns; or why it cannot be."""
        return Refusal(f"branches of kind {self.kind!r} do not say what makes them zero")

    def stages(self, x: Tensor, rows: slice | None = None) -> Iterator[tuple[str, Tensor]]:
        """What it computes on the way from x, by name, its output last: for looking where numbers go wrong."""
        yield "branch", type(self).forward(self, x, rows)

    # --- what is derived ---------------------------------------------------------------------------------------------

    @classmethod
    def on_meta(cls, in_features: int, out_features: int, rank: int, config: NobleConfig) -> Branch:
        """A branch without values: its names and shapes only."""
        with torch.device("meta"):
            return cls(in_features, out_features, rank, config)

    @classmethod
    def parameter_count(cls, in_features: int, out_features: int, rank: int, config: NobleConfig) -> int:
        """How many parameters such a branch has."""
        return sum(p.numel() for p in cls.on_meta(in_features, out_features, rank, config).parameters())

    @property
    def width(self) -> int:
        """How many channels the bottleneck has, those of linear maps beside it counted."""
        beside = adapters_of(self)
        return self.rank + (0 if beside is None else beside.rank)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it is stored in."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def redraw(self) -> None:
        """Draw every value again, as when it was made; raises `ConfigError` where it is folded, pruned or in FSDP1."""
        self._draw(lambda tensor: True)

    def _draw(self, wanted: Callable[[Any], bool]) -> None:
        if self.folded:
            raise ConfigError(
                "a folded model is for inference and cannot be drawn again; use the model it was folded from"
            )
        if has_other_names(self.sigma()):
            raise ConfigError(
                "σ has masks or gates of a training rule and cannot be drawn again; close() that rule first"
            )
        fresh, beside = self.fresh(self.out_features), adapters_of(self)
        for name, drawn in [*fresh.named_parameters(), *fresh.named_buffers()]:
            owner, _, leaf = name.rpartition(".")
            if not name.startswith("adapters.") and wanted(getattr(self.get_submodule(owner), leaf)):
                refill(self.get_submodule(owner), leaf, drawn)
        if beside is not None:
            beside.redraw(self.drawn_as, self.config, wanted)
        self.lacks_values, self.origin = False, None

    def fresh(self, out_features: int, rank: int | None = None) -> Branch:
        """A new branch of its kind and settings, newly drawn."""
        kind = parametrize.type_before_parametrizations(self)
        branch: Branch = kind(self.in_features, out_features, rank or self.rank, self.config, self.role)
        return branch

    # transformers builds a model on the meta device and loads it, asks each module whether it has its values, and sets
    # this once it has initialised those that were not in the checkpoint, of which each tensor says the same.
    @property
    def _is_hf_initialized(self) -> bool:
        return not self.lacks_values

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, initialized: bool) -> None:
        on_meta = any(tensor.is_meta for tensor in [*self.parameters(), *self.buffers()])
        if initialized and self.lacks_values and not on_meta:
            with torch.no_grad(), drawing(self.config, self.drawn_as):
                self._draw(lambda tensor: not getattr(tensor, "_is_hf_initialized", False))

    def prepare(self, eager: str = "") -> None:
        """Decide once how it runs: `eager` is what its place says against the operator, "" where nothing does."""
        form = self.fused_form() if not eager else None
        self.unfused = eager or (form.reason if isinstance(form, Refusal) else "")
        self.key = form.key if isinstance(form, FusedForm) else ""
        self.bound = Bound(self, form) if isinstance(form, FusedForm) else None

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.rank} ({self.label}) -> {self.out_features}{', folded' * self.folded}"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "bound": None, "enabled": True}  # bound to these objects; off for a while, unlike a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _LIVE.add(self)
        if not self.unfused:  # a new process does not know the key yet, and a copy binds its own tensors
            self.prepare()


def live_branches() -> Iterator[Branch]:
    """Every branch of this process, of whatever model."""
    yield from list(_LIVE)


def branches_with(parameters: Iterable[Tensor]) -> list[Branch]:
    """The branches that hold one of these tensors themselves: a compiled graph shows no more of a branch."""
    wanted = set(map(id, parameters))
    return [branch for branch in live_branches() if any(id(p) in wanted for p in branch._parameters.values())]

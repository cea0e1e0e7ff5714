"""The eager truth: NOBLE's branch.

For a linear map `x [.., K] -> y [.., N]` and a rank r (arXiv 2603.06492, eq. of the layer):

    y = x Wᵀ + b + σ(x Dᵀ + d) Uᵀ          W [N, K]   b [N]   D [r, K]   d [r]   U [N, r]

Everything fast in this project is measured against `NobleBranch.forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.branches import activations, keys
from noble_fx.branches.adapters import adapters_of
from noble_fx.branches.affine import affine_map, is_affine
from noble_fx.branches.base import Branch, FusedForm, Rate
from noble_fx.branches.beside import form_beside
from noble_fx.branches.channels import Resized
from noble_fx.branches.drawing import drawing, has_values
from noble_fx.branches.factors import Factors
from noble_fx.branches.folded import fold_constants
from noble_fx.branches.own_tensors import more_than_its_tensors, own_modules, own_parameters
from noble_fx.branches.resizing import resized, shortened
from noble_fx.branches.trace import why_untraceable
from noble_fx.branches.witness import witness
from noble_fx.config import NobleConfig
from noble_fx.distributed import reduced
from noble_fx.errors import Refusal


class NobleBranch(Branch):
    """σ(x Dᵀ + d) Uᵀ, [.., K] -> [.., N]; parameters `down` [r, K], `down_bias` [r] or None, `up` [N, r], `act.…`.

    Drawn as the preset of `config` says: D ~ N(0, 1/√K), d = 0, U ~ N(0, α/√r).
    """

    kind = "noble"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {"down": ("r", "K"), "up": ("N", "r"), "up_bias": ("N",)}
    takes_adapters = True
    up_bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, rank: int, config: NobleConfig, role: str = "other"):
        super().__init__(in_features, out_features, rank, config, role)
        preset = config.recipe
        down_bias = preset.down_bias and not activations.is_identity(config.act)
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.down_bias = nn.Parameter(torch.empty(rank)) if down_bias else None
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.register_parameter("up_bias", None)  # only a folded branch has one
        self.act = activations.build_activation(config.act, rank, preset)
        self.reset_parameters()

    @classmethod
    def check(cls, config: NobleConfig) -> None:
        """Refuse an unknown or misshapen σ; raises `ConfigError`."""
        # With values, since σ may decide on them, and without taking the caller's random numbers.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            activations.build_activation(config.act, 4, config.recipe)

    @property
    def label(self) -> str:
        """The activation's name."""
        return activations.activation_label(self.config.act)

    def reset_parameters(self) -> None:
        """Draw D, d and U again; the parts of σ have a `reset_parameters` of their own."""
        if not has_values(self.down):
            return
        nn.init.normal_(self.down, std=self.in_features**-0.5)
        if self.down_bias is not None:
            nn.init.zeros_(self.down_bias)
        nn.init.normal_(self.up, std=self.config.recipe.up_gain * self.rank**-0.5)

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """[.., N], or only the `rows` of N that go with a slice of the weight (one part of a fused qkv)."""
        y, beside = self._out(activations.evaluate(self.act, self._bottleneck(x)), rows), adapters_of(self)
        return y if beside is None else y + beside(x, rows)

    def stages(self, x: Tensor, rows: slice | None = None) -> Iterator[tuple[str, Tensor]]:
        """h, σ(h) and the output."""
        h = self._bottleneck(x)
        yield "h", h
        t = activations.evaluate(self.act, h)
        yield "σ", t
        y, beside = self._out(t, rows), adapters_of(self)
        yield "branch", y
        if beside is not None:
            yield "branch and adapters", y + beside(x, rows)

    def _bottleneck(self, x: Tensor) -> Tensor:
        return reduced(F.linear(x, self.down, self.down_bias))

    def _out(self, t: Tensor, rows: slice | None) -> Tensor:
        up_bias = self.up_bias if rows is None or self.up_bias is None else self.up_bias[rows]
        return F.linear(t, self.up if rows is None else self.up[rows], up_bias)

    # --- how it learns -----------------------------------------------------------------------------------------------

    def parameter_roles(self) -> Iterator[tuple[str, nn.Parameter, Rate]]:
        """down, down_bias, up, and of σ mixer, frequency, phase, scale, shift or other; rates are the preset's."""
        for name, parameter in own_parameters(self):
            yield name, parameter, self.rate(name)
        for module in own_modules(self.act):
            roles = getattr(type(module), "roles", {"weight": "mixer"} if isinstance(module, nn.Linear) else {})
            for name, parameter in own_parameters(module):
                role = roles.get(name, "other")
                yield role, parameter, self.rate(role)
        beside = adapters_of(self)
        for role, parameter in () if beside is None else beside.parameter_roles():
            yield role, parameter, Rate()

    def rate(self, role: str) -> Rate:
        """How fast this role learns: `(min(K, N) / r) ** exponent`, a constant, or 1 (NOBLE's two recipes)."""
        preset, ratio = self.config.recipe, min(self.in_features, self.out_features) / self.rank
        multipliers = {
            "up": ratio**preset.lr_up_exponent,
            "mixer": ratio**preset.lr_mixer_exponent,
            "frequency": preset.lr_frequency,
            "phase": preset.lr_phase,
            "scale": preset.lr_scale,
            "shift": preset.lr_shift,
        }
        return Rate(multipliers.get(role, 1.0), role not in ("frequency", "phase") or preset.decay_frequency)

    # --- how it changes while it learns ------------------------------------------------------------------------------

    def resized(self, rank: int, inputs: Tensor | None = None) -> Resized | Refusal:
        """Grown by channels that nobody hears yet, or shrunk by those that cost least for `inputs` [rows, r]."""
        if adapters_of(self) is not None:
            return Refusal("there are adapters beside it")
        # By another name than at first: a channel that comes anew is none that was there.
        with torch.no_grad(), drawing(self.config, f"{self.drawn_as} {self.rank}->{rank}"):
            return resized(self, self.fresh(self.out_features, rank), inputs)

    def shortened(self, rank: int, factor: float, inputs: Tensor | None = None) -> Resized | Refusal:
        """Its first channels in every space of σ, as masks leave them."""
        with torch.no_grad(), drawing(self.config, f"{self.drawn_as} {self.rank}->{rank}"):
            return shortened(self, self.fresh(self.out_features, rank), factor, inputs)

    def with_sigma(
        self, change: Callable[[nn.Module], nn.Module | Refusal], columns: Tensor | None = None
    ) -> Refusal | None:
        """σ and U changed where they stand."""
        act = change(self.act)
        if isinstance(act, Refusal):
            return act
        of_sigma = isinstance(self.fused_form(), Refusal)  # else what its place says
        self.act = act.train(self.training)
        if columns is not None:
            with torch.no_grad():
                self.up.mul_(columns.to(self.up.dtype))
        self.prepare("" if of_sigma else self.unfused)
        return None

    def sigma(self) -> nn.Module:
        """σ."""
        return self.act

    def bottleneck(self, x: Tensor) -> Tensor:
        """h = x Dᵀ + d [.., r] of x [.., K]."""
        return F.linear(x, self.down, self.down_bias)

    def before_up(self, x: Tensor) -> Tensor:
        """t = σ(x Dᵀ + d)"""
        return activations.evaluate(self.act, self._bottleneck(x))

    def silence(self) -> Refusal | None:
        """U = 0: the layer alone, and the gradient of U is what it is."""
        if adapters_of(self) is not None:
            return Refusal("there are adapters beside it")
        with torch.no_grad():
            self.up.zero_()
        return None

    # --- how it runs -------------------------------------------------------------------------------------------------

    def fused_form(self) -> FusedForm | Refusal:
        """D, d, U and σ's tensors; a σ that cannot be traced faithfully has none."""
        recognised = keys.recognise(self.act, self.label, self.rank)
        if refusal := why_untraceable(recognised.key, self.rank):
            return refusal
        unchanged = witness(self, "act", recognised)
        if isinstance(unchanged, Refusal):
            return unchanged
        names = [name for name, _ in [*self.act.named_parameters(), *self.act.named_buffers()]]
        form = FusedForm(
            down="down",
            down_bias="down_bias" if self.down_bias is not None else None,
            up="up",
            up_bias="up_bias" if self.up_bias is not None else None,
            act=tuple(f"act.{name}" for name in names),
            key=recognised.key,
            unchanged=unchanged,
        )
        beside = adapters_of(self)
        return form if beside is None else form_beside(form, self.act, self.label, self.rank, beside)

    def with_bias(self, bias: Tensor | None) -> Tensor | None:
        """The layer's bias [N] and the branch's own as one."""
        if self.up_bias is None:
            return bias
        return self.up_bias if bias is None else bias + self.up_bias

    def act_tensors(self) -> list[Tensor]:
        """σ's parameters, then its buffers: the `act` argument of `noble_fx::linear`."""
        return [*self.act.parameters(), *self.act.buffers()]

    def merged(self) -> tuple[Tensor, Tensor | None] | Refusal:
        """(U M D, U (M d + m)) where σ(h) is h Mᵀ + m, and what the adapters beside it add."""
        if not is_affine(self.act):
            return Refusal(f"σ ({self.label}) is not linear")
        (mixed, shift), beside = affine_map(self.act, self.down, self.rank), adapters_of(self)
        weight = self.up @ mixed @ self.down
        if self.down_bias is not None:
            shift = shift + mixed @ self.down_bias
        has_shift = self.down_bias is not None or bool(shift.any())
        bias = self.with_bias(self.up @ shift if has_shift else None)
        return weight if beside is None else weight + beside.merged(), bias

    def factors(self) -> list[Factors] | Refusal:
        """(D, U, 1) where σ is the identity and D has no bias; where it is frozen, those of the adapters beside it."""
        beside = adapters_of(self)
        if beside is not None:
            own = [parameter for name, parameter in self.named_parameters() if not name.startswith("adapters.")]
            if not any(parameter.requires_grad for parameter in own):
                return more_than_its_tensors(self) or beside.factors()
            return Refusal("it learns together with adapters beside it, and the rules hold for one linear map")
        if type(self.act) is not nn.Identity:
            return Refusal(f"σ ({self.label}) stands between D and U, so U D is not the matrix that they learn")
        if self.down_bias is not None:
            return Refusal("the bias of D reaches U too, so the gradient of U is not that of a product U D alone")
        if refusal := more_than_its_tensors(self):
            return refusal
        return [Factors("", self.down, self.up)]

    def fold(self) -> Refusal | None:
        """Fold ω, φ, scales, shifts and signs of σ into D, U and σ's own matrices."""
        parts = fold_constants(self.act, self.down, self.down_bias, self.up, self.up_bias, self.label)
        if isinstance(parts, Refusal):
            return parts
        self.down, self.down_bias, self.act, self.up, self.up_bias = parts
        self.folded = True
        self.prepare(self.unfused)
        return None

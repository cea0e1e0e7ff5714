"""A linear branch: adapters and nothing else, Σᵢ wᵢ sᵢ (x Dᵢᵀ) Uᵢᵀ [.., N], beside a layer that is frozen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from noble_fx.branches.adapters import Adapter, Adapters, adapter_name
from noble_fx.branches.base import Branch, FusedForm, Rate
from noble_fx.branches.beside import linear_form
from noble_fx.branches.factors import Factors
from noble_fx.branches.own_tensors import more_than_its_tensors
from noble_fx.config import ADAPTER_SETTINGS, NobleConfig
from noble_fx.errors import ConfigError, Refusal, shown


class LoraBranch(Branch):
    """Adapters by name in `adapters`; the first is the one that the settings describe."""

    kind = "lora"
    settings: ClassVar[frozenset[str]] = frozenset(ADAPTER_SETTINGS)
    takes_adapters = True

    def __init__(self, in_features: int, out_features: int, rank: int, config: NobleConfig, role: str = "other"):
        super().__init__(in_features, out_features, rank, config, role)
        self.adapters = Adapters(in_features, out_features)
        self.adapters.add(adapter_name(config), Adapter(in_features, out_features, config, rank))

    @classmethod
    def check(cls, config: NobleConfig) -> None:
        """Refuse what a linear branch has not: a σ, an initialised base, a block around it; raises `ConfigError`."""
        if config.act not in ("cosnet", "identity"):  # the first is what nobody asked for
            raise ConfigError(f"act={shown(config.act)} is for branches with a σ; branch='lora' is a linear map")
        if config.init_base:
            raise ConfigError("init_base=True draws the weights that branch='lora' keeps frozen; pass init_base=False")
        if config.scope != "linear":
            raise ConfigError("branch='lora' is beside linear layers; pass scope='linear'")
        if config.dropout and config.capture not in ("auto", "modules"):
            raise ConfigError(
                f"dropout={config.dropout} draws in every call, which capture={config.capture!r} would record once; "
                "pass capture='modules', or dropout=0"
            )

    @property
    def label(self) -> str:
        """ "linear"."""
        return "linear"

    @property
    def width(self) -> int:
        """R: channels of all adapters."""
        return self.adapters.rank

    def reset_parameters(self) -> None:
        """Draw each D again; U = 0."""
        for adapter in self.adapters.named().values():
            adapter.reset_parameters()

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """[.., N], or only the `rows` of N that go with a slice of the weight."""
        output: Tensor = self.adapters(x, rows)
        return output

    def parameter_roles(self) -> Iterator[tuple[str, nn.Parameter, Rate]]:
        """lora.down and lora.up, at the rate that was asked for."""
        for role, parameter in self.adapters.parameter_roles():
            yield role, parameter, Rate()

    def fused_form(self) -> FusedForm | Refusal:
        """Every D and U, and the gate between them."""
        return linear_form(self.adapters)

    def merged(self) -> tuple[Tensor, Tensor | None] | Refusal:
        """Σ w s U D of those that are on."""
        return self.adapters.merged(), None

    def factors(self) -> list[Factors] | Refusal:
        """Those of the adapters that are on."""
        return more_than_its_tensors(self) or self.adapters.factors()

    def silence(self) -> Refusal | None:
        """U = 0."""
        for adapter in self.adapters.named().values():
            nn.init.zeros_(adapter.up)
        return None

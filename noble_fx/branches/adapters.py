"""Linear maps beside a branch or in its place: named adapters (LoRA), each switched and weighted by a number.

    y = Σᵢ wᵢ sᵢ (x Dᵢᵀ) Uᵢᵀ        Dᵢ [rᵢ, K]   Uᵢ [N, rᵢ]   sᵢ = αᵢ / √rᵢ, or αᵢ / rᵢ   wᵢ a weight, 0 for off

As one bottleneck: D = [D₁; D₂; …], U = [U₁ U₂ …] and h ⊙ gate between them, gate [R] = wᵢ sᵢ at the channels of each.
The gate is a buffer, so that whatever was traced or compiled reads the weights of today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.branches.drawing import drawing, has_values
from noble_fx.branches.factors import Factors
from noble_fx.config import NobleConfig, check_adapter_name
from noble_fx.distributed import is_distributed, laid_out_like, reduced
from noble_fx.errors import ConfigError

GATE = "gate"


class Weighted(nn.Module):
    """h ⊙ gate, [.., R] -> [.., R]: σ of linear maps side by side."""

    gate: Tensor

    def __init__(self, gate: Tensor) -> None:
        super().__init__()
        self.register_buffer(GATE, gate)

    def forward(self, h: Tensor) -> Tensor:
        return h * self.gate


class SideBySide(nn.Module):
    """[σ(h₁) h₂ ⊙ gate] for h = [h₁ h₂], h₁ [.., channels]: a branch and linear maps as one bottleneck."""

    gate: Tensor

    def __init__(self, act: nn.Module, gate: Tensor, channels: int) -> None:
        super().__init__()
        self.act, self.channels = act, channels
        self.register_buffer(GATE, gate)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([self.act(h[..., : self.channels]), h[..., self.channels :] * self.gate], -1)


class Adapter(nn.Module):
    """One of them: `down` [r, K] drawn as peft draws it, `up` [N, r] = 0; the scale s and the weight w are numbers."""

    def __init__(self, in_features: int, out_features: int, config: NobleConfig, rank: int) -> None:
        super().__init__()
        self.rank, self.seed = rank, config.seed
        self.alpha = 16.0 if config.alpha is None else float(config.alpha)
        self.rslora = config.rslora is not False
        self.dropout = float(config.dropout or 0.0)
        self.weighed = 1.0  # w; 0: off
        self.learns: dict[str, bool] = {}  # while it is off: whether `down` and `up` learn where it is on
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """D ~ U(-1/√K, 1/√K), which is kaiming_uniform(a=√5); U = 0."""
        if has_values(self.down):
            nn.init.kaiming_uniform_(self.down, a=5**0.5)
            nn.init.zeros_(self.up)

    @property
    def scale(self) -> float:
        """s: α / √r, or α / r."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def switch(self, weight: float) -> None:
        """Weigh it; what is off gets no gradient, and learns again as before once it is on."""
        named = dict(self.named_parameters())
        if weight and self.learns:
            for name, learns in self.learns.items():
                named[name].requires_grad_(learns)
            self.learns = {}
        elif not weight and not self.learns:
            self.learns = {name: parameter.requires_grad for name, parameter in named.items()}
            self.requires_grad_(False)
        self.weighed = float(weight)

    def described(self) -> dict[str, Any]:
        """What a file says of it, in plain JSON values."""
        settings = {name: getattr(self, name) for name in ("rank", "alpha", "rslora", "dropout", "seed")}
        return {**settings, "weight": self.weighed}

    def extra_repr(self) -> str:
        return f"r {self.rank}, scale {self.scale:.4g}, weight {self.weighed:.4g}"


class Adapters(nn.Module):
    """Adapters by name, side by side, [.., K] -> [.., N]; the names are those of its children."""

    gate: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer(GATE, torch.empty(0), persistent=False)

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """[.., N], or only those `rows` of N."""
        outputs, start = [], 0
        for adapter in self.named().values():
            read = F.dropout(x, adapter.dropout, self.training) if adapter.dropout else x
            h = reduced(F.linear(read, adapter.down))
            gate: Any = self.gate[start : (start := start + adapter.rank)]  # which a graph reads anew
            if is_distributed(h) and not is_distributed(gate):  # no operand beside a DTensor
                gate = adapter.weighed * adapter.scale
            h = (h * gate).to(h.dtype)
            outputs.append(F.linear(h, adapter.up if rows is None else adapter.up[rows]))
        return sum(outputs[1:], outputs[0])

    def named(self) -> dict[str, Adapter]:
        """The adapters by name."""
        return dict(self._modules)  # type: ignore[arg-type]

    @property
    def rank(self) -> int:
        """R: channels of all of them."""
        return sum(adapter.rank for adapter in self.named().values())

    @property
    def draws(self) -> bool:
        """Whether a call draws at random, as in training with dropout."""
        return self.training and any(adapter.dropout and adapter.weighed for adapter in self.named().values())

    # --- which there are ---------------------------------------------------------------------------------------------

    def add(self, name: str, adapter: Adapter) -> None:
        """Put one more beside the others; raises `ConfigError` for a name that is taken."""
        check_adapter_name(name)
        if name in self._modules:
            raise ConfigError(
                f"there is an adapter {name!r} already; give the new one another name (adapter=…), or take the old one "
                f"out with noble_fx.drop_adapters(model, {name!r})"
            )
        if hasattr(self, name):
            raise ConfigError(f"adapter={name!r} is a name of torch's own; choose another")
        self.add_module(name, adapter)
        self.changed()

    def drop(self, name: str) -> None:
        """Take one out."""
        del self._modules[name]
        self.changed()

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Weigh each; those that are not named are off. The gate is written in place."""
        for name, adapter in self.named().items():
            adapter.switch(weights.get(name, 0.0))
        self.refill()

    def changed(self) -> None:
        """Make the gate as long as there are channels."""
        some = next(self.parameters(), self.gate)
        wide = torch.promote_types(some.dtype, torch.float32)  # a scale that is rounded to bfloat16 is another one
        self._buffers[GATE] = torch.empty(self.rank, dtype=wide, device=some.device)
        self.refill()

    def refill(self) -> None:
        """Write the numbers into the gate."""
        if self.gate.is_meta:
            return
        values = [adapter.weighed * adapter.scale for adapter in self.named().values() for _ in range(adapter.rank)]
        with torch.no_grad():
            self.gate.copy_(laid_out_like(self.gate, torch.tensor(values, dtype=torch.float64).to(self.gate.dtype)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapters:
        super()._apply(fn, recurse)
        some = next(self.parameters(), None)
        if some is not None:
            wide = torch.promote_types(some.dtype, torch.float32)
            if self.gate.dtype != wide:
                self._buffers[GATE] = self.gate.to(wide)
            self.refill()
        return self

    def redraw(self, drawn_as: str, config: NobleConfig, wanted: Callable[[Any], bool]) -> None:
        """Draw the `wanted` of their tensors again, each from its own seed and name."""
        # The one that a linear branch was made with was drawn as that branch.
        alone = adapter_name(config) if config.branch == "lora" else None
        for name, adapter in self.named().items():
            place = drawn_as if name == alone else seed_name(drawn_as, name)
            with drawing(config.replace(seed=adapter.seed), place):
                fresh = Adapter(self.in_features, self.out_features, config, adapter.rank)
            for own, drawn in zip(adapter.parameters(), fresh.parameters(), strict=True):
                if wanted(own):
                    own.copy_(drawn)
        self.refill()

    # --- what they are to others -------------------------------------------------------------------------------------

    def matrices(self, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of every D and of every U below `path`."""
        names = list(self._modules)
        return tuple(f"{path}.{name}.down" for name in names), tuple(f"{path}.{name}.up" for name in names)

    def merged(self) -> Tensor:
        """ΔW [N, K] of those that are on; zero where none is."""
        total = next(self.parameters()).new_zeros(self.out_features, self.in_features)
        for adapter in self.named().values():
            if adapter.weighed:
                total = total + (adapter.weighed * adapter.scale) * (adapter.up @ adapter.down)
        return total

    def factors(self) -> list[Factors]:
        """(D, U, w s) of each that is on."""
        on = {name: adapter for name, adapter in self.named().items() if adapter.weighed}
        return [Factors(name, each.down, each.up, each.weighed * each.scale) for name, each in on.items()]

    def parameter_roles(self) -> Iterator[tuple[str, nn.Parameter]]:
        """("lora.down" or "lora.up", parameter) of each."""
        for adapter in self.named().values():
            yield "lora.down", adapter.down
            yield "lora.up", adapter.up

    def described(self) -> dict[str, dict[str, Any]]:
        """What a file says of each, by name."""
        return {name: adapter.described() for name, adapter in self.named().items()}

    def told(self) -> str:
        """In words: which there are, and what is on."""
        return ", ".join(f"{name} r {adapter.rank}{_how(adapter)}" for name, adapter in self.named().items())


def _how(adapter: Adapter) -> str:
    if adapter.weighed == 1:
        return ""
    return f" × {adapter.weighed:g}" if adapter.weighed else " (off)"


def seed_name(place: str, adapter: str) -> str:
    """The name that an adapter's seed goes by, at the layer of the name `place`."""
    return f"{place} {adapter}"


def drawn_adapter(in_features: int, out_features: int, config: NobleConfig, rank: int, place: str) -> Adapter:
    """A new adapter as `config` says, drawn from its seed for the layer called `place`."""
    with drawing(config, seed_name(place, adapter_name(config))):
        return Adapter(in_features, out_features, config, rank)


def adapter_name(config: NobleConfig) -> str:
    """What a linear branch of these settings is called."""
    return config.adapter or "default"


def adapters_of(branch: nn.Module) -> Adapters | None:
    """The linear maps beside a branch, or in it; None where there are none."""
    held = branch._modules.get("adapters")
    return held if isinstance(held, Adapters) else None

"""σ with places at which channels are silenced, and σ without them again.

    cos → M → cos        becomes        cos → mask → M → cos → mask

Masks stand in front of every matrix, U counted, and not on h: cos 0 = 1, so a channel whose h is 0 still speaks. With
the first b channels let through at each of them, M counts as its block [b, b]. A mask is a buffer, so that whatever
was traced or compiled reads the one of today, and no file holds it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from noble_fx.branches.activations import Mixer, ScaleShift, Signed
from noble_fx.errors import Refusal

_INNER, _MASK, _GATE = "inner", "channel_mask", "channel_gate"
_MATRICES = (Mixer, nn.Linear)


# By how much what reads b of r channels is raised: not at all, as α/b is over α/r, or by the root of that.
FACTORS: dict[str, Callable[[int, int], float]] = {
    "none": lambda count, rank: 1.0,
    "alpha": lambda count, rank: rank / count,
    "root": lambda count, rank: (rank / count) ** 0.5,
}


class ChannelMask(nn.Module):
    """t ⊙ mask, [.., r] -> [.., r]: a factor at the first channels, 0 at the rest; all of them in eval mode.

    `drawn` is how many speak in training, `asked` how many in either mode where somebody asks.
    """

    mask: Tensor

    def __init__(self, rank: int, normalise: str, like: Tensor) -> None:
        super().__init__()
        self.rank, self.normalise = rank, normalise
        self.drawn, self.asked = rank, 0
        self.register_buffer("mask", torch.ones(rank, dtype=like.dtype, device=like.device), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        return t * self.mask

    def draw(self, count: int) -> None:
        """Let the first `count` through in training."""
        self.drawn = count
        self._refill()

    def ask(self, count: int) -> None:
        """Let the first `count` through whatever the mode; 0: as before."""
        self.asked = count
        self._refill()

    def factor(self, count: int) -> float:
        """By how much `count` channels are raised."""
        return FACTORS[self.normalise](count, self.rank)

    def train(self, mode: bool = True) -> ChannelMask:
        super().train(mode)
        self._refill()
        return self

    def _refill(self) -> None:
        count = self.asked or (self.drawn if self.training else self.rank)
        with torch.no_grad():
            self.mask[:count] = self.factor(count)
            self.mask[count:] = 0


def masks_of(act: nn.Module) -> list[ChannelMask]:
    """The masks of a σ, none where it has no such places."""
    return [part for part in act.modules() if type(part) is ChannelMask]


def gate_of(act: nn.Module) -> ScaleShift | None:
    """The gate w [r] behind a σ, or None."""
    found = act._modules.get(_GATE)
    return found if isinstance(found, ScaleShift) else None


def masked(act: nn.Module, rank: int, normalise: str, like: Tensor) -> nn.Module | Refusal:
    """σ with a mask in front of every matrix and one behind it, its own parts in it under their own names."""
    if any(type(part) is Signed and _has_matrix(part) for part in act.modules()):
        return Refusal("a matrix of σ stands inside a Signed, where no mask can be put in front of it")
    for part in act.modules():
        if type(part) in _MATRICES and (width := part.weight.shape[1]) != rank:  # type: ignore[index]
            return Refusal(f"a matrix of σ reads {width} numbers and not the {rank} channels, so no mask fits it")

    def mask() -> ChannelMask:
        return ChannelMask(rank, normalise, like)

    return _ended(_opened(act, mask), _MASK, mask())


def gated(act: nn.Module, rank: int, like: Tensor) -> nn.Module:
    """w ⊙ σ(h), w [r] = 1."""
    gate = ScaleShift(rank, scale=True, shift=False).to(like.device, like.dtype)
    return _ended(act, _GATE, gate)


def bare(act: nn.Module) -> nn.Module:
    """σ without masks and gates."""
    if type(act) is not nn.Sequential:
        return act
    parts = {name: bare(part) for name, part in act.named_children() if not name.startswith((_MASK, _GATE))}
    return parts[_INNER] if parts.keys() == {_INNER} else nn.Sequential(OrderedDict(parts))


def has_other_names(act: nn.Module | None) -> bool:
    """Whether masks or gates have changed the names of what a file would hold of σ."""
    return act is not None and act.state_dict().keys() != bare(act).state_dict().keys()


def _has_matrix(part: nn.Module) -> bool:
    return any(type(inner) in _MATRICES for inner in part.modules())


def _opened(act: nn.Module, mask: Callable[[], nn.Module]) -> nn.Module:
    """A chain with masks in it; whatever else it is, itself."""
    if type(act) is not nn.Sequential or not _has_matrix(act):
        return act
    return nn.Sequential(OrderedDict(_parts(act, mask)))


def _parts(act: nn.Sequential, mask: Callable[[], nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for at, (name, part) in enumerate(act.named_children()):
        if type(part) in _MATRICES:
            yield f"{_MASK}{at}", mask()
        yield name, _opened(part, mask)


def _ended(act: nn.Module, name: str, last: nn.Module) -> nn.Module:
    """σ, and `last` behind it."""
    parts = act._modules if type(act) is nn.Sequential else {_INNER: act}
    return nn.Sequential(OrderedDict({**parts, name: last}))

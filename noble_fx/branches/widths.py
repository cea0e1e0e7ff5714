"""How σ's tensors go with its channels, found by comparing σ of two ranks, and shown to be so in numbers.

An axis of k·r entries in the one and k·R in the other has k entries for each channel; one that is as long in both has
none. σ is opened into a chain as for folding: each matrix of it ends one space of channels and begins the next; inside
any other part all channels are of one space. That this is how σ computes is then tried with numbers of no meaning: the
first r channels of the wider σ must be those of the narrow one, whatever the others are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noble_fx.branches.activations import Mixer, Signed
from noble_fx.branches.channels import Axes, Axis, Kept
from noble_fx.branches.keys import first_line
from noble_fx.branches.recording import sampled
from noble_fx.errors import Refusal


@dataclass(frozen=True)
class Widths:
    """The axes of σ's tensors by name, the paths of its matrices in order, and in which space its result is."""

    axes: dict[str, Axes]
    matrices: tuple[str, ...]
    last: int


def widths(act: nn.Module, other: nn.Module, rank: int, other_rank: int) -> Widths | Refusal:
    """How σ of `rank` and the same one of `other_rank` go together; or why that is not known."""
    (low, narrow), (high, wide) = sorted([(rank, act), (other_rank, other)], key=lambda pair: pair[0])
    reason = Refusal("it would have no other rank")
    for turned in (False, True):  # a part of the user's own may compute h W where torch computes h Wᵀ
        found = _read(narrow, wide, low, high, turned)
        if isinstance(found, Refusal):
            return found
        wrong = _differs(narrow, wide, found, low, high)
        if wrong is None:
            return found
        reason = wrong
    return reason


def links(act: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts that σ is a chain of, with their paths. Exact classes only, as in `folded.py`."""
    if type(act) is nn.Sequential or type(act) is Signed:
        for name, part in act._modules.items():  # each time that one stands there twice
            if part is not None:
                yield from links(part, f"{path}.{name}".removeprefix("."))
    else:
        yield path, act


def _read(narrow: nn.Module, wide: nn.Module, low: int, high: int, turned: bool) -> Widths | Refusal:
    axes: dict[str, Axes] = {}
    matrices: list[str] = []
    first: dict[int, Axes] = {}  # by the tensor's identity
    space = 0
    wider = dict(links(wide))
    chain = list(links(narrow))
    if [(path, type(part)) for path, part in chain] != [(path, type(part)) for path, part in wider.items()]:
        return Refusal(f"it is made of other parts for rank {high} than for rank {low}")
    for path, part in chain:
        matrix = type(part) in (Mixer, nn.Linear)
        own, others = _tensors(part), _tensors(wider[path])
        if own.keys() != others.keys():
            return Refusal(f"its {type(part).__name__} holds other tensors for rank {high} than for rank {low}")
        for name, tensor in own.items():
            blocks = _blocks(tuple(tensor.shape), tuple(others[name].shape), low, high)
            if blocks is None:
                sizes = f"{list(tensor.shape)} for rank {low} and {list(others[name].shape)} for rank {high}"
                return Refusal(f"{f'{path}.{name}'.removeprefix('.')!r} of its {type(part).__name__} is {sizes}")
            named = _matrix_axes(blocks, space) if matrix else _own_axes(blocks, space, turned)
            if first.setdefault(id(tensor), named) != named:
                return Refusal(f"{name!r} of its {type(part).__name__} stands at two places with a matrix between them")
            axes[f"{path}.{name}".removeprefix(".")] = named
        if matrix:
            matrices.append(path)
            space += 1
    return Widths(axes, tuple(matrices), space)


def _tensors(part: nn.Module) -> dict[str, Tensor]:
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}


def _blocks(narrow: tuple[int, ...], wide: tuple[int, ...], low: int, high: int) -> tuple[int, ...] | None:
    """For each axis how many entries a channel has along it, 0 where the rank says nothing; None where unknown."""
    if len(narrow) != len(wide):
        return None
    found = []
    for few, many in zip(narrow, wide, strict=True):
        if few != many and (few % low or many * low != few * high):
            return None
        found.append(0 if few == many else few // low)
    return tuple(found)


def _matrix_axes(blocks: tuple[int, ...], space: int) -> Axes:
    """Of a weight [N, K] or a bias [N] between two spaces."""
    made = Axis(space + 1, False, blocks[0]) if blocks[0] else None
    taken = (Axis(space, True, blocks[1]) if blocks[1] else None,) if len(blocks) == 2 else ()
    return (made, *taken)


def _own_axes(blocks: tuple[int, ...], space: int, turned: bool) -> Axes:
    """Of a tensor inside a part: what makes channels comes first, what takes them after that; or the other way."""
    count = sum(map(bool, blocks))
    axes: list[Axis | None] = []
    seen = 0
    for each in blocks:
        seen += bool(each)
        taken = turned if count == 1 and len(blocks) > 1 else (seen == 1) == turned and count > 1
        axes.append(Axis(space, taken, each) if each else None)
    return tuple(axes)


def _differs(narrow: nn.Module, wide: nn.Module, found: Widths, low: int, high: int) -> Refusal | None:
    """Why the wider σ is not the narrow one and more channels beside it; None where it is, as far as numbers show."""
    kept = Kept(low, high, {space: torch.arange(low) for space in range(found.last + 1)})
    h = 2 * torch.randn(6, high, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    try:
        few, many = sampled(narrow, torch.float64).eval(), sampled(wide, torch.float64).eval()
        with torch.no_grad():
            own, others = _tensors(few), _tensors(many)
            for name, axes in found.axes.items():
                kept.unseen(kept.carry(own[name], others[name], axes), axes)
            alike = torch.allclose(many(h)[:, :low], few(h[:, :low]), rtol=1e-9, atol=1e-12)
    except Exception as error:
        return Refusal(f"it fails with channels more: {type(error).__name__}: {first_line(error)}")
    return None if alike else Refusal("its channels are not known to be apart: with more of them, the others change")

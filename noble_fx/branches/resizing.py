"""A NOBLE branch of another rank: more channels beside the old ones, which nobody hears yet, or fewer.

grown      new rows of D and of σ as the branch is drawn, zeros where an old channel or U would read a new one
shrunk     the channels that cost least go, in each space of σ on its own; then M and U are fitted again
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.branches.channels import Axes, Axis, Kept, Resized
from noble_fx.branches.fewer import refitted, relative_error, survivors
from noble_fx.branches.masks import gate_of, masks_of
from noble_fx.branches.recording import with_tensors
from noble_fx.branches.widths import Widths, widths
from noble_fx.errors import Refusal

NOISE_ROWS = 2048


def resized(old: Any, new: Any, h: Tensor | None = None) -> Resized | Refusal:
    """`new`, of the class and settings of `old` and freshly drawn, filled from it; or why it cannot be.

    `h` [rows, r]: what reached the bottleneck of `old`, to lose as little of its result as possible; without, D and d
    of rows of standard normal numbers, as behind a norm. Must be called under `no_grad`.
    """
    known = _known(old, new)
    if isinstance(known, Refusal):
        return known
    found, axes = known
    if new.rank >= old.rank:
        every = torch.arange(old.rank)
        kept = Kept(old.rank, new.rank, dict.fromkeys(range(found.last + 1), every))
        _fill(old, new, axes, kept)
        return Resized(new, axes, kept)
    rows = _noise(old) if h is None else h.to("cpu", torch.float64)
    chosen = _chosen(old, found, rows, new.rank)
    if isinstance(chosen, Refusal):
        return chosen
    _fill(old, new, axes, chosen)
    error = _refit(old, new, found, chosen, rows)
    return Resized(new, axes, chosen, error)


def shortened(old: Any, new: Any, factor: float, h: Tensor | None = None) -> Resized | Refusal:
    """`new` filled with the first channels of `old` in every space, what reads channels times `factor`; or why not.

    That is what `old` computes with masks (`masks.py`) that let these through. Must be called under `no_grad`.
    """
    known = _known(old, new)
    if isinstance(known, Refusal):
        return known
    found, axes = known
    kept = Kept(old.rank, new.rank, dict.fromkeys(range(found.last + 1), torch.arange(new.rank)))
    _fill(old, new, axes, kept)
    readers = [new.up, *(new.act.get_submodule(path).weight for path in found.matrices)]
    for weight in {id(weight): weight for weight in readers}.values():
        weight.mul_(factor)
    rows = _noise(old) if h is None else h.to("cpu", torch.float64)
    before = _matrix_inputs(_alone(old.act), found, rows)
    after = _matrix_inputs(_alone(new.act), found, rows[:, : new.rank])
    error = relative_error(_wide(new.up), after[-1], _wide(old.up), before[-1])
    return Resized(new, axes, kept, error)


def _known(old: Any, new: Any) -> tuple[Widths, dict[str, Axes]] | Refusal:
    """How the tensors of `old` go with its channels; or why that is not known."""
    if masks_of(old.act) or gate_of(old.act) is not None:
        return Refusal("its σ has masks or gates of a training rule; call close() of that rule first, or truncate")
    found = widths(old.act, new.act, old.rank, new.rank)
    if isinstance(found, Refusal):
        return Refusal(f"σ ({old.label}) cannot be given another rank: {found.reason}")
    axes = _branch_axes(old, found)
    if strange := sorted(axes.keys() ^ {name for name, _ in [*old.named_parameters(), *old.named_buffers()]}):
        return Refusal(f"{strange[0]!r} is not what it was made with")
    return found, axes


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _branch_axes(old: Any, found: Widths) -> dict[str, Axes]:
    axes: dict[str, Axes] = {"down": (Axis(0, False), None), "up": (None, Axis(found.last, True))}
    if old.down_bias is not None:
        axes["down_bias"] = (Axis(0, False),)
    return axes | {f"act.{name}": axis for name, axis in found.axes.items()}


def _fill(old: Any, new: Any, axes: dict[str, Axes], kept: Kept) -> None:
    """Give every tensor of `new` the dtype, device and kept entries of the one in `old`."""
    for path, tensor in [*old.named_parameters(), *old.named_buffers()]:
        module, leaf = _place(new, path)
        drawn = getattr(module, leaf).detach().to(tensor.device, tensor.dtype)
        filled = kept.unseen(kept.carry(tensor, drawn, axes[path]), axes[path])
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(filled, requires_grad=tensor.requires_grad)
            _put(new, getattr(module, leaf), made)
        else:
            _put(new, getattr(module, leaf), filled)


def _put(new: Any, before: Tensor, tensor: Tensor) -> None:
    """`tensor` at every place of `new` where `before` is: σ may hold one under several names."""
    for module in new.modules():
        for table in (module._parameters, module._buffers):
            for name in [name for name, held in table.items() if held is before]:
                table[name] = tensor


def _place(branch: Any, path: str) -> tuple[Any, str]:
    owner, _, leaf = path.rpartition(".")
    return branch.get_submodule(owner), leaf


# --- fewer channels --------------------------------------------------------------------------------------------------


def _noise(old: Any) -> Tensor:
    """What reaches the bottleneck from rows of standard normal numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NOISE_ROWS, old.in_features, generator=generator).double()
    h = x @ _wide(old.down).T
    return h if old.down_bias is None else h + _wide(old.down_bias)


def _chosen(old: Any, found: Widths, h: Tensor, count: int) -> Kept | Refusal:
    """The channels to keep in every space: the last one first, since a matrix need only make what is kept behind it."""
    act = _alone(old.act)
    inputs = _matrix_inputs(act, found, h)
    ends: list[tuple[str, Any]] = [(f"{path}.weight", act.get_submodule(path).weight) for path in found.matrices]
    ends.append(("up", _wide(old.up)))
    axes = {**found.axes, "up": (None, Axis(found.last, True))}
    channels: dict[int, Tensor] = {}
    for space in reversed(range(found.last + 1)):
        name, weight = ends[space]
        made, taken = axes[name]
        if taken is None:
            continue  # between two matrices of a width of their own
        if taken.blocks > 1:
            return Refusal(f"σ ({old.label}) reads {taken.blocks} entries of each channel in {name!r}")
        if made is not None:
            places, _ = Kept(old.rank, count, channels).places(made)
            weight = weight[places]
        channels[space] = survivors(inputs[space], weight, count)
    return Kept(old.rank, count, channels)


def _refit(old: Any, new: Any, found: Widths, kept: Kept, h: Tensor) -> float:
    """Fit the matrices of `new` in order, each to what the old one made of its own inputs; returns the error at U."""
    before, after = _alone(old.act), _alone(new.act)
    wanted_inputs, h = _matrix_inputs(before, found, h), h[:, kept.channels[0]]
    for at, path in enumerate(found.matrices):
        inputs = _matrix_inputs(after, found, h)[at]
        made = found.axes[f"{path}.weight"][0]
        wanted: Tensor = before.get_submodule(path).weight  # type: ignore[assignment]
        if made is not None:
            wanted = wanted[kept.places(made)[0]]
        own: Tensor = after.get_submodule(path).weight  # type: ignore[assignment]
        own.copy_(refitted(own, inputs, wanted, wanted_inputs[at]))
        stored: Tensor = new.act.get_submodule(path).weight
        stored.copy_(own)
    inputs, up = _matrix_inputs(after, found, h)[-1], _wide(old.up)
    new.up.copy_(refitted(_wide(new.up), inputs, up, wanted_inputs[-1]))
    return relative_error(_wide(new.up), inputs, up, wanted_inputs[-1])


def _alone(act: nn.Module) -> nn.Module:
    """A copy of σ on the CPU, its numbers in float64."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else None, copy=True)

    return with_tensors(act, wide).eval().requires_grad_(False)


def _matrix_inputs(act: nn.Module, found: Widths, h: Tensor) -> list[Tensor]:
    """What each matrix of σ reads, [rows, ·], in order, and last σ(h), which U reads."""
    seen: list[Tensor] = []
    handles = [
        act.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        for path in found.matrices
    ]
    try:
        result = act(h.clone())
    finally:
        for handle in handles:
            handle.remove()
    return [*seen, result]

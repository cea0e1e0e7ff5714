"""With scope="block": the repeated blocks of a model, each as one map of its hidden state, [.., C] -> [.., C].

A block is the outermost repeated module: experts inside one, or the sublayers of T5's, are none of their own. A stage,
which holds whole blocks with attention and feed-forward, is looked into (Swin's, ALBERT's groups).

C is read off the linear maps inside and never guessed: the one width that goes into an attention, mixer or
feed-forward part and comes out of one; where there are norms, one of them must have it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from noble_fx.distributed import is_distributed
from noble_fx.errors import Refusal
from noble_fx.layers.base import Augmented, plain_class
from noble_fx.layers.registry import row_of
from noble_fx.sites.blocks import HEAD, repeated_blocks
from noble_fx.sites.heads import is_head_name
from noble_fx.sites.layer_maps import LinearMap
from noble_fx.sites.site import BLOCK, Site
from noble_fx.wrappers import own_name

_IN = ("attention.q", "attention.k", "attention.v", "attention.qkv", "attention.kv", "ffn.in", "ffn.gate", "mixer.in")
_OUT = ("attention.out", "ffn.out", "mixer.out")
_MIXING = ("attention.", "mixer.")
_UNFUSED = Refusal("around a whole block: there is no single linear map to be one operator with")
_CHILDREN = {"_modules", "children", "named_children"}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def at_scope(model: nn.Module, maps: Sequence[LinearMap], scope: str) -> list[LinearMap]:
    """What a branch may stand beside: the linear maps themselves, or the blocks that they show."""
    return block_maps(model, maps) if scope == BLOCK else list(maps)


def block_maps(model: nn.Module, maps: Sequence[LinearMap]) -> list[LinearMap]:
    """The blocks of `model` in its order, with the width that its linear `maps` tell; a shared one once."""
    blocks = {id(model.get_submodule(name)) for name in _blocks(model, maps)}
    names: dict[int, tuple[nn.Module, list[str]]] = {}
    for fqn, module in model.named_modules(remove_duplicate=False):
        if id(module) in blocks:
            names.setdefault(id(module), (module, []))[1].append(fqn)
    return [_block_map(module, tuple(fqns), maps) for module, fqns in names.values()]


def _blocks(model: nn.Module, maps: Sequence[LinearMap]) -> set[str]:
    """The outermost repeated modules, and instead of a stage the blocks in it."""
    left = repeated_blocks(model)
    found: set[str] = set()
    while left:
        outer = {name for name in left if not any(_inside(name, other) for other in left)}
        left -= outer
        for name in outer:
            inner = {other for other in left if _inside(other, name)}
            if not any(_is_whole(maps, other) for other in inner):
                found.add(_unwrapped(model, name))
                left -= inner
    return found


def _is_whole(maps: Iterable[LinearMap], block: str) -> bool:
    """Whether the module holds both a mixer of tokens and a feed-forward part."""
    roles = [entry.site.role for entry in _maps_in(maps, block)]
    return any(role.startswith(_MIXING) for role in roles) and any(role.startswith("ffn.") for role in roles)


def _unwrapped(model: nn.Module, name: str) -> str:
    """The name of the block itself, out of what torch.compile or checkpointing put around it."""
    module = model.get_submodule(name)
    while child := next((n for n in module._modules if own_name(f"{name}.{n}", model) == own_name(name, model)), ""):
        name, module = f"{name}.{child}", module.get_submodule(child)
    return name


def _block_map(block: nn.Module, names: tuple[str, ...], maps: Sequence[LinearMap]) -> LinearMap:
    fqn = names[0]
    inside = list(_maps_in(maps, *names))
    width = _width(block, inside)
    c = width if isinstance(width, int) else 0
    obstacle = _obstacle(block, inside) or (width if isinstance(width, Refusal) else None)
    site = Site(fqn, BLOCK, plain_class(block).__name__, c, c, 0, False, "", 0, names[1:])
    against = HEAD if "." in fqn and is_head_name(fqn.split(".")[-2]) else None
    return LinearMap(site, block, True, against, obstacle, eager=_UNFUSED)


def _maps_in(maps: Iterable[LinearMap], *blocks: str) -> Iterator[LinearMap]:
    for entry in maps:
        if any(_inside(entry.site.fqn, block) for block in blocks):
            yield entry


def _inside(fqn: str, block: str) -> bool:
    return fqn.startswith(block + ".")


def _obstacle(block: nn.Module, inside: Sequence[LinearMap]) -> Refusal | None:
    """Why no branch can be around this module, whatever its width."""
    name = plain_class(block).__qualname__
    if isinstance(block, nn.ModuleList | nn.ModuleDict):
        return Refusal(f"a {name}, which is never called itself")
    if row_of(block) is not None:
        return Refusal(f"a {name} is a layer, not a block; scope='linear' gives it branches")
    if runs_its_children(block):
        return Refusal(f"{name} runs whatever children it has, and a branch would be one of them")
    if isinstance(block, torch.jit.ScriptModule):
        return Refusal("a ScriptModule cannot be rewritten")
    if parametrize.is_parametrized(block):
        return Refusal("it is parametrized; transform the model first, or remove the parametrization")
    if "forward" in vars(block):
        return Refusal("its forward was replaced on the instance (an accelerate hook?); transform before that")
    if not isinstance(block, Augmented) and hasattr(block, "noble"):
        return Refusal("it already has an attribute named 'noble'")
    if any(is_distributed(parameter) for parameter in block.parameters()) and not isinstance(block, Augmented):
        return Refusal("its weights are spread over ranks; transform before that, or use scope='linear'")
    return _convolutional(block, inside)


def runs_its_children(block: nn.Module) -> bool:
    """Whether forward goes over the module's children, as that of nn.Sequential does."""
    forward = inspect.unwrap(plain_class(block).forward)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return isinstance(block, nn.Sequential) or bool(_CHILDREN & set(names))


def _convolutional(block: nn.Module, inside: Sequence[LinearMap]) -> Refusal | None:
    """A block of convolutions has its channels elsewhere; a short one over time inside a mixer of tokens does not."""
    larger = [m for m in block.modules() if isinstance(m, _CONVOLUTIONS) and max(map(int, m.kernel_size)) > 1]
    mixes = any(entry.site.role.startswith(_MIXING) and not isinstance(entry.module, _CONVOLUTIONS) for entry in inside)
    if not larger or (mixes and all(isinstance(each, nn.Conv1d) for each in larger)):
        return None
    return Refusal(
        "a block of convolutions, whose channels may not be the last dimension; scope='linear' is right there"
    )


def _width(block: nn.Module, inside: Sequence[LinearMap]) -> int | Refusal:
    """C, the one width that goes in and comes out; or why nobody can tell."""
    known = [entry.site for entry in inside if not isinstance(entry.module, _CONVOLUTIONS)]
    ins = {site.in_features for site in known if site.role in _IN}
    outs = {site.out_features for site in known if site.role in _OUT}
    norms = set(_norm_widths(block))
    both = ins & outs
    if len(both) > 1 and len(both & norms) == 1:
        both &= norms
    if len(both) == 1 and (not norms or both <= norms):
        return both.pop()
    told = f"into its parts go {_listed(ins)}, out of them come {_listed(outs)}, its norms have {_listed(norms)}"
    return Refusal(f"the width of its hidden state is not certain: {told}; scope='linear' is right there")


def _listed(widths: set[int]) -> str:
    return " and ".join(map(str, sorted(widths))) or "nothing known"


def _norm_widths(block: nn.Module) -> Iterator[int]:
    for module in block.modules():
        weight: Any = module._parameters.get("weight")
        if "norm" in type(module).__name__.lower() and weight is not None and weight.ndim == 1:
            yield int(weight.shape[0])

"""A module's own tensors under the names by which its forward reads them, whatever stands behind these names today.

up                                 a parameter
parametrizations.up.original0, …   torch.nn.utils.parametrize: weight_norm, spectral_norm, LoRA of one's own
up_orig, or up_g and up_v          prune, and the older weight_norm, whose hook sets `up` before each forward
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from noble_fx.branches.bound import read
from noble_fx.distributed import laid_out_like
from noble_fx.errors import ConfigError, Refusal

_BEHIND = ("_orig", "_g", "_v")  # what prune, weight_norm and spectral_norm append to the name of a parameter


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of all that the module's own tensors are made of, by the name that its forward reads."""
    for name, parameter in module.named_parameters(recurse=False):
        yield _read_as(module, name), parameter
    if parametrize.is_parametrized(module):
        tables: Any = module.parametrizations
        for name, behind in tables.items():
            for parameter in behind.parameters():
                yield name, parameter


def own_modules(module: nn.Module) -> Iterator[nn.Module]:
    """`module` and those inside, without what stands behind a parametrized tensor."""
    yield module
    for name, child in module.named_children():
        if name != "parametrizations":
            yield from own_modules(child)


def _read_as(module: nn.Module, name: str) -> str:
    for ending in _BEHIND:
        stem = name.removesuffix(ending)
        if stem != name and isinstance(vars(module).get(stem), Tensor):
            return stem
    return name


def refill(module: nn.Module, name: str, drawn: Tensor) -> None:
    """Give a module's own tensor other values in place; raises `ConfigError` where there is no such place."""
    if parametrize.is_parametrized(module, name):
        _refill_behind(module, name, drawn)
        return
    own = read({**module._parameters, **module._buffers}, vars(module), name)
    if name not in module._parameters and name not in module._buffers and f"{name}_orig" in module._parameters:
        raise ConfigError(f"{name!r} is pruned, and new values would lose the mask; call torch.nn.utils.prune.remove")
    if not isinstance(own, Tensor) or own.shape != drawn.shape or own.untyped_storage().size() == 0 < drawn.numel():
        raise ConfigError(
            f"{name!r} has not the shape {list(drawn.shape)} that it was made with; of a model in FSDP1 reset the "
            "branches before wrapping, or inside FullyShardedDataParallel.summon_full_params(model)"
        )
    own.copy_(laid_out_like(own, drawn))


def _refill_behind(module: nn.Module, name: str, drawn: Tensor) -> None:
    before = getattr(module, name)
    try:
        setattr(module, name, drawn.detach().to(before.device, before.dtype))
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"{name!r} is parametrized, and its parametrization has no right_inverse that would take new values "
            f"({error}); remove the parametrization first"
        ) from error


def more_than_its_tensors(branch: nn.Module) -> Refusal | None:
    """What a branch does besides its own maths on its own tensors, which rewriting these would lose; or None."""
    for part in branch.modules():
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            return Refusal("hooks on the branch (prune, weight_norm or of your own) would be lost")
        if parametrize.is_parametrized(part):
            return Refusal("the branch is parametrized")
    return None

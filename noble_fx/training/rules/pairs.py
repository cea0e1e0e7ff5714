"""The pairs (D, U) of a model that learn a matrix together, with what their gradients must be to be worked on."""

from __future__ import annotations

from torch import Tensor, nn

from noble_fx.attach.attach import named_branches
from noble_fx.branches.factors import Factors
from noble_fx.distributed import is_distributed
from noble_fx.errors import CaptureError, ConfigError, Refusal
from noble_fx.wrappers import own_name


def pairs(model: nn.Module) -> dict[str, Factors]:
    """Every pair by the name of its layer (and adapter), one of each that learns at all.

    Raises `ConfigError` for a branch that learns and is no product of two matrices, or where there is no pair, and
    `CaptureError` for a shard.
    """
    found: dict[str, Factors] = {}
    for fqn, branch in named_branches(model).items():
        if not any(parameter.requires_grad for parameter in branch.parameters()):
            continue
        name, factors = own_name(fqn, model), branch.factors()
        if isinstance(factors, Refusal):
            raise ConfigError(
                f"the branch at {name!r} is no product of two matrices: {factors.reason}. The rules for pairs hold for "
                "linear branches only; freeze this one, or train without the rule"
            )
        found |= {f"{name}.{pair.name}".rstrip("."): pair for pair in factors}
    learning = {name: pair for name, pair in found.items() if pair.down.requires_grad or pair.up.requires_grad}
    if not learning:
        raise ConfigError("the model has no linear branch that learns; transform(model, act='identity', …) adds some")
    owners: dict[int, str] = {}
    for name, pair in learning.items():
        _check_whole(name, pair)
        for parameter in (pair.down, pair.up):
            if (first := owners.setdefault(id(parameter), name)) != name:
                raise ConfigError(
                    f"the branches at {first!r} and {name!r} share a matrix, whose gradient is the sum of both; the "
                    "rules for pairs need one of its own for each"
                )
    return learning


def gradient(parameter: nn.Parameter) -> Tensor | None:
    """Its gradient, None where it is frozen or no loss has reached it."""
    return parameter.grad if parameter.requires_grad else None


def _check_whole(name: str, pair: Factors) -> None:
    """A pair that is cut over ranks has r × r products that no rank knows alone."""
    for parameter in (pair.down, pair.up):
        if is_distributed(parameter) or parameter.ndim != 2:
            raise CaptureError(
                f"the branch at {name!r} is spread over ranks, and the products of its rows would need all of them; "
                "leave branches out of the sharding (fully_shard(…, ignored_params=…)), or use DistributedDataParallel"
            )

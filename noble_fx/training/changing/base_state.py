"""`noble_fx.load_base_state`: what an optimizer knew of a plain model, for the optimizer of that model with branches.

An optimizer's state_dict goes by positions, and branches have moved them all. So the parameters that the old optimizer
was given are listed once more, in the same order, without those of branches; the old positions are theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from noble_fx.attach.attach import named_branches
from noble_fx.errors import ConfigError, nearest, shown
from noble_fx.training.changing.optimizers import put_back_on_error
from noble_fx.wrappers import own_name

# What schedulers and `param_groups` write into groups; the rest of a group's keys are the optimizer's own settings.
_GUESTS = frozenset(
    """params param_names name lr lr_scale use_muon weight_decay initial_lr max_lr min_lr swa_lr max_momentum
    base_momentum""".split()  # noqa: SIM905
)


def load_base_state(optimizer: Optimizer, state: Any, model: nn.Module, base: Iterable[Any] | None = None) -> int:
    """Give `optimizer` the state of the base parameters of `model` from before there were branches; returns how many.

    `state`: the old optimizer, or its state_dict. `base`: what the old optimizer was given (parameters, groups of them,
    or names), where that was not `model.parameters()`. Rates, decay and the state of branches stay as they are here.
    Raises `ConfigError` where the two do not fit, and the optimizer is as it was.
    """
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer={shown(optimizer)} must be a torch.optim.Optimizer")
    names = _base_names(model)
    live = isinstance(state, Optimizer)
    old = state.state_dict() if live else state
    if not isinstance(old, Mapping) or not {"state", "param_groups"} <= old.keys():
        raise ConfigError("state must be an optimizer or its state_dict(), with 'state' and 'param_groups'")
    remedy = ""
    if live and base is None:
        base = state.param_groups
        remedy = "; of another instance of the model give the optimizer's .state_dict() instead"
    parameters = _in_old_order(model, names, old, base, remedy)
    _check_kind(optimizer, old)
    own = optimizer.state_dict()
    positions = _positions(optimizer)
    carried = {}
    for key, values in old["state"].items():
        parameter = parameters.get(key)
        if parameter is None:
            raise ConfigError(f"the old state has an entry {shown(key)} that is in none of its groups")
        if id(parameter) in positions:
            _check_shapes(names[id(parameter)], parameter, values)
            carried[positions[id(parameter)]] = _apart(values) if live else values
        elif parameter.requires_grad:
            raise ConfigError(
                f"{names[id(parameter)]!r} learns and is in no group of the optimizer; build it from "
                "noble_fx.param_groups(model, ...)"
            )
    with put_back_on_error([optimizer]):
        optimizer.load_state_dict({**own, "state": {**own["state"], **carried}})
    return len(carried)


def _apart(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """State that an optimizer goes on with, as one of its own."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in values.items()}


def _base_names(model: nn.Module) -> dict[int, str]:
    """The name of each base parameter by its identity, in the order of `model.parameters()`."""
    of_branches = {id(p) for branch in named_branches(model).values() for p in branch.parameters()}
    return {id(p): own_name(name, model) for name, p in model.named_parameters() if id(p) not in of_branches}


def _in_old_order(
    model: nn.Module, names: Mapping[int, str], old: Any, base: Iterable[Any] | None, remedy: str
) -> dict[Any, nn.Parameter]:
    """The base parameter behind each key of the old state."""
    by_name = {names[id(p)]: p for p in model.parameters() if id(p) in names}
    keys = [key for group in old["param_groups"] for key in group["params"]]
    if base is None and all(isinstance(key, str) for key in keys):
        given: list[Any] = keys  # torch.distributed.checkpoint's, by name
    elif base is None and all("param_names" in group for group in old["param_groups"]):
        given = [name for group in old["param_groups"] for name in group["param_names"]]
    elif base is None:
        given = list(by_name.values())
        learning = [parameter for parameter in given if parameter.requires_grad]
        given = learning if len(learning) == len(keys) else given
    else:
        given = [each for item in base for each in _members(item)]
    if len(given) != len(keys):
        here = "the model has" if base is None else "base holds"
        raise ConfigError(
            f"the old optimizer held {len(keys)} parameters, and {here} {len(given)} besides those of branches; pass "
            "base=…, what the old optimizer was given, in the same order"
        )
    found = {}
    for key, each in zip(keys, given, strict=True):
        parameter = by_name.get(own_name(each)) if isinstance(each, str) else each
        if parameter is None or id(parameter) not in names:
            what = f"{each!r}{nearest(each, by_name)}" if isinstance(each, str) else f"a tensor {list(each.shape)}"
            raise ConfigError(f"the old optimizer held {what}, which is no parameter of the model's own{remedy}")
        found[key] = parameter
    return found


def _members(item: Any) -> list[Any]:
    """The parameters, or names, of one entry of what an optimizer is given."""
    if isinstance(item, Mapping):
        members = item["params"]
        return [each for member in ([members] if isinstance(members, Tensor) else members) for each in _members(member)]
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
        return [item[1]]  # a named parameter
    if isinstance(item, Tensor | str):
        return [item]
    raise ConfigError(f"base holds {shown(item)}, which is neither a parameter, nor a group of them, nor a name")


def _positions(optimizer: Optimizer) -> dict[int, int]:
    """Where a state_dict of this optimizer has each parameter."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {id(parameter): at for at, parameter in enumerate(held)}


def _check_kind(optimizer: Optimizer, old: Any) -> None:
    """Refuse the state of another algorithm: its groups have settings that this one's lack."""
    own = {key for group in optimizer.param_groups for key in group} | set(optimizer.defaults)
    others = {key for group in old["param_groups"] for key in group}
    if strange := sorted(others - own - _GUESTS):
        raise ConfigError(
            f"the old state is of another optimizer than {type(optimizer).__qualname__}: its groups have "
            f"{strange[0]!r}; use the class that it was made with"
        )


def _check_shapes(name: str, parameter: nn.Parameter, values: Any) -> None:
    for key, value in values.items():
        if isinstance(value, Tensor) and not _belongs(tuple(value.shape), tuple(parameter.shape)):
            raise ConfigError(
                f"the old state {key!r} at the place of {name!r} {list(parameter.shape)} is {list(value.shape)}; pass "
                "base=…, what the old optimizer was given, in the same order"
            )


def _belongs(shape: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether a state of this shape may be of such a parameter: its shape, a number, or a factor (of rows, columns)."""
    if len(shape) == len(own):
        return all(size in (1, whole) for size, whole in zip(shape, own, strict=True))
    return len(shape) < len(own) and set(shape) <= {1, *own}

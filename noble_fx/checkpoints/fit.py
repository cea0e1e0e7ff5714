"""Whether what a folder holds fits a model that was planned, and how it is put there.

Everything is compared before anything is changed: names, shapes and dtypes by the file's header, then the values of
tensors that the model has as one, and numbers that a narrower dtype cannot hold.

    file                                  model
    float64, float32, bfloat16, float16   any of these four: rounded to the model's
    any other dtype                       the same
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.attach import branch_paths
from noble_fx.attach.draw import base_tensors
from noble_fx.branches.kinds import branch_class
from noble_fx.captures.base import Plan
from noble_fx.checkpoints.weights_file import Stored
from noble_fx.errors import CheckpointError, printable
from noble_fx.sites.site import Site
from noble_fx.wrappers import own_name

_FLOATING = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))
_EXTRA = "_extra_state"  # how nn.Module ends the name of what get_extra_state gives
_SHOWN = 5  # problems that one message names


class Fit:
    """The state that the planned model will have, by the user's own names: what a folder has to hold for it."""

    def __init__(
        self, model: nn.Module, plan: Plan | None, folder: str, beside: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.folder = folder
        self.expected = {own_name(key, model): value for key, value in model.state_dict().items()}
        self.names = _shared_names(model)  # of one tensor, by each of them
        for site in plan.selected if plan is not None else ():
            assert plan is not None
            state = _branch_state(model, site, plan)
            paths = [own_name(path, model) for path in _all_paths(site)]
            for name, value in state.items():
                names = [f"{path}.{name}" for path in paths]
                self.expected |= dict.fromkeys(names, value)
                if not site.weight:
                    self.names |= dict.fromkeys(names, names)
        self.expected |= beside  # what comes on top, by name

    def check_header(self, stored: Mapping[str, Stored], extra: Mapping[str, Any]) -> None:
        """Raises `CheckpointError` that names what is missing, unexpected, of another shape or dtype."""
        found = {**extra, **stored}
        problems = [self._mismatch(name, found[name]) for name in self.expected if name in found]
        problems += [f"{printable(name)} is not in the model" for name in found if name not in self.expected]
        missing = [name for name in self.expected if not self.stored_as(name, found)]
        problems += [f"{printable(name)} is not in the file" for name in missing]
        self._refuse([problem for problem in problems if problem])

    def check_values(self, values: Mapping[str, Tensor]) -> None:
        """Raises `CheckpointError` for values that the model could not hold as they are in the file."""
        problems = []
        for name, value in values.items():
            first = self.stored_as(name, values)
            if not torch.equal(_bytes(values[first]), _bytes(value)):
                both = f"{printable(first)} and {printable(name)}"
                problems.append(f"{both} are one tensor in the model, and two in the file")
            elif _overflows(value, self.expected[name]):
                problems.append(f"{printable(name)} has values beyond {self.expected[name].dtype} of the model")
        self._refuse(problems)

    def stored_as(self, name: str, found: Mapping[str, Any]) -> str:
        """Under which of its names a tensor lies in the file: with several, it is stored once, under any of them."""
        return next((other for other in self.names.get(name, [name]) if other in found), "")

    def _mismatch(self, name: str, found: Any) -> str:
        expected, shown = self.expected[name], printable(name)
        if name.endswith(_EXTRA):
            return ""  # the module itself says what it takes
        if not isinstance(found, Stored) or not isinstance(expected, Tensor):
            return f"{shown} is a tensor in the {'file' if isinstance(found, Stored) else 'model'} alone"
        if found.shape != tuple(expected.shape):
            return f"{shown} is {list(found.shape)} in the file and {list(expected.shape)} in the model"
        if found.dtype != expected.dtype and not {found.dtype, expected.dtype} <= _FLOATING:
            return f"{shown} is {found.dtype} in the file and {expected.dtype} in the model"
        return ""

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise CheckpointError(
                f"{self.folder} does not fit this model: {'; '.join(problems[:_SHOWN])}{more}. Build the model with "
                "the settings it was saved with"
            )


def _bytes(value: Tensor) -> Tensor:
    return value.reshape(-1).view(torch.uint8)


def _overflows(value: Tensor, expected: Any) -> bool:
    if not isinstance(expected, Tensor) or not {value.dtype, expected.dtype} <= _FLOATING:
        return False
    largest = torch.finfo(expected.dtype).max
    if torch.finfo(value.dtype).max <= largest or not value.numel():
        return False
    return bool((value.to(expected.dtype).isinf() & value.isfinite()).any())


def _shared_names(model: nn.Module) -> dict[str, list[str]]:
    """For every tensor with several names: all of them, by each."""
    by_tensor: dict[int, list[str]] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        by_tensor.setdefault(id(tensor), []).append(own_name(name, model))
    return {name: names for names in by_tensor.values() for name in names}


def _branch_state(model: nn.Module, site: Site, plan: Plan) -> dict[str, Any]:
    """The state of the site's branch, without values, in the dtype that it will have."""
    weight = base_tensors(model, site)[0]
    branch = branch_class(plan.config).on_meta(site.in_features, site.out_features, site.rank, plan.config)
    return branch.to(weight.dtype).state_dict()


def _all_paths(site: Site) -> list[str]:
    return [*branch_paths(site), *(f"{alias}.noble" for alias in site.aliases if not site.weight)]


# --- putting it there ------------------------------------------------------------------------------------------------


def fill(model: nn.Module, fit: Fit, values: Mapping[str, Any]) -> None:
    """Give the model what the folder holds, by the way that its own modules load a state_dict."""
    names = {key: own_name(key, model) for key in model.state_dict()}
    model.load_state_dict({key: values[fit.stored_as(name, values)] for key, name in names.items()})


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """On whatever is raised inside, the model's tensors and extra state are again what they were."""
    before = {
        key: (value, value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value))
        for key, value in model.state_dict().items()
    }
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for key, (value, old) in before.items():
                if key.endswith(_EXTRA):
                    model.get_submodule(key.rpartition(".")[0]).set_extra_state(old)
                elif not torch.equal(value, old.to(value.device)):  # else it may be of a kind that takes no copies
                    value.copy_(old)
        raise

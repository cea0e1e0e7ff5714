"""`noble_fx.merge`: linear maps beside a layer become one with its weight; what is nonlinear stays.

    x Wᵀ + b + x ΔWᵀ + Δb  ->  x (W + ΔW)ᵀ + (b + Δb)          summed in float64, rounded once

In place, because what comes out is an ordinary model to train, save and adapt further, and a second set of the weights
would be of no use; for a copy, merge a copy. All is computed before anything is written.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.adapters import adapter_names, branch_there, take_out, thaw
from noble_fx.attach.attach import detach_site, named_branches
from noble_fx.attach.draw import base_tensors
from noble_fx.attach.fast_path import keep_from_fast_path
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.switched_off import is_off
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.branches.adapters import adapters_of
from noble_fx.branches.base import Branch
from noble_fx.branches.lora import LoraBranch
from noble_fx.branches.own_tensors import more_than_its_tensors
from noble_fx.captures.table import captured
from noble_fx.errors import ConfigError, Refusal
from noble_fx.inspect import sites
from noble_fx.layers.quantized import foreign
from noble_fx.layers.registry import layout_of
from noble_fx.layers.structured import Structured
from noble_fx.passes.history import Step
from noble_fx.passes.inference.merge_branch import merge_branch
from noble_fx.sites.site import Site
from noble_fx.torch_versions import forget_compiled
from noble_fx.transform import remove


@dataclass(frozen=True)
class Linear:
    """What is linear in a branch: ΔW [N, K] and Δb [N] or None in float64, by which adapters, and whether it is all."""

    weight: Tensor
    bias: Tensor | None
    names: tuple[str, ...]
    whole: bool


@dataclass(frozen=True)
class Merged:
    """What a layer's tensors become: pairs of one of them and its new value; `new_bias` [N] where it had none."""

    site: Site
    linear: Linear
    values: tuple[tuple[Tensor, Tensor], ...]
    new_bias: Tensor | None


def merge(model: nn.Module) -> nn.Module:
    """Merge the adapters that are on, by their weights, and branches without a nonlinear σ into W and b, in place.

    Returns the model, which computes what it did. NOBLE's nonlinear branches stay, and adapters that are off. Once no
    adapter is left, whatever learned before the first one came learns again. Raises `ConfigError` where there is
    nothing linear, and where a weight cannot take it (quantized, tied, of another form), `CaptureError` for a wrapped
    model; all is as it was then.
    """
    branches = named_branches(model)
    if any(map(is_off, branches.values())):
        raise ConfigError("the model is inside noble_fx.disabled(model); leave that, then merge")
    check_unwrapped(model, "remove", branches)
    found = list(_merging(model))
    if not found:
        raise ConfigError(_nothing(branches))
    all_gone = len(found) == len(branches) and all(each.linear.whole for each in found)
    if any(captured(model)) and not all_gone:
        raise ConfigError(
            "a captured graph holds the branches that it was made with, so of this model all or nothing can be merged; "
            "export_onnx merges in the file"
        )
    forget_compiled()
    with restored_on_error(model) as before, torch.no_grad():
        before.keep(tensor for each in found for tensor, _ in each.values)
        for each in found:
            for tensor, value in each.values:
                tensor.copy_(value)
            if each.new_bias is not None:
                model.get_submodule(each.site.fqn).bias = nn.Parameter(each.new_bias)
        if all_gone:
            return remove(model)
        for each in found:
            if each.linear.whole:
                detach_site(model, each.site)
            else:
                take_out(model, [each.site], each.linear.names)
        keep_from_fast_path(model)
        note(model)
        if not adapter_names(model):
            thaw(model)
    return model


def _merging(model: nn.Module) -> Iterator[Merged]:
    """What can be merged, layer by layer; raises `ConfigError` for what is linear and has no weight to go to."""
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for site in sites(model):
        branch = branch_there(model, site) if site.selected else None
        linear = linear_part(branch) if branch is not None else None
        if branch is None or linear is None:
            continue
        if why := _obstacle(model, site, branch, linear, holders):
            raise ConfigError(
                f"the linear map beside {site.fqn!r} cannot be merged: {why}. Take it out with "
                "noble_fx.drop_adapters(model), or leave such layers out with exclude=…"
            )
        yield merged_at(model, site, linear)


def linear_part(branch: Branch) -> Linear | None:
    """What is linear in a branch: all of it, or the adapters that are on; None where nothing is."""
    adapters = adapters_of(branch)
    named = {} if adapters is None else adapters.named()
    on = tuple(name for name, adapter in named.items() if adapter.weighed)
    exact: Any = copy.deepcopy(branch).double()
    if isinstance(branch, LoraBranch):
        return Linear(exact.adapters.merged(), None, on, len(on) == len(named)) if on else None
    answer = exact.merged()
    if not isinstance(answer, Refusal):
        return Linear(answer[0], answer[1], tuple(named), whole=True)
    return Linear(exact.adapters.merged(), None, on, whole=False) if on else None


def _obstacle(model: nn.Module, site: Site, branch: Branch, linear: Linear, holders: Counter[int]) -> str:
    """Why the weight of a layer cannot take what is beside it; "" where it can."""
    if site.is_block or site.experts:
        return "it belongs to no single weight"
    owner = _owner(model, site)
    if isinstance(owner, Structured):
        return f"W is {owner.base.kind}, and a sum would not be"
    weight, *bias = base_tensors(model, site)
    if not isinstance(weight, nn.Parameter) or foreign(weight) or weight.numel() != linear.weight.numel():
        return f"its weight is {foreign(weight) or 'no parameter [N, K]'}"
    if holders[id(weight)] > 1:
        return "its weight is shared with another layer, which has no such map"
    if weight.is_meta:
        return "the model is on the meta device"
    if linear.bias is not None and not bias and not isinstance(owner, nn.Linear):
        return "it needs a bias, and there is none"
    adapters = adapters_of(branch)
    if linear.whole and adapters is not None and not all(each.weighed for each in adapters.named().values()):
        return "the whole branch is linear, and some of its adapters are off"
    refusal = more_than_its_tensors(branch)
    return refusal.reason if refusal else ""


def _owner(model: nn.Module, site: Site) -> Any:
    return model.get_submodule(site.weight.rpartition(".")[0] if site.weight else site.fqn)


def merged_at(model: nn.Module, site: Site, linear: Linear) -> Merged:
    """The new values of a layer's weight and bias."""
    (weight, *bias), shift = base_tensors(model, site), linear.bias
    transposed = (site.layout or layout_of(_owner(model, site))) == "[K, N]"
    delta = linear.weight.t() if transposed else linear.weight.reshape(weight.shape)
    values = [(weight, (weight.double() + delta).to(weight.dtype))]
    if shift is not None and bias:
        values.append((bias[0], (bias[0].double() + shift).to(bias[0].dtype)))
    return Merged(site, linear, tuple(values), shift.to(weight.dtype) if shift is not None and not bias else None)


def merge_adapters(model: nn.Module) -> list[Step]:
    """Merge adapters in a copy for inference, into weights of its own, where that can be; those that are off go.

    One step a layer. The copy may share the memory of its parameters with a model that stays as it is.
    """
    if any(captured(model)) or not adapter_names(model):
        return []
    done, holders = [], Counter[int]()
    for site in [site for site in sites(model) if site.selected]:
        branch: Any = branch_there(model, site)
        adapters = adapters_of(branch)
        if adapters is None or not branch.enabled:
            continue
        linear = Linear(copy.deepcopy(adapters).double().merged(), None, tuple(adapters.named()), whole=False)
        if _obstacle(model, site, branch, linear, holders):
            continue
        ((weight, value),) = merged_at(model, site, linear).values
        owner, name = _owner(model, site), site.weight.rpartition(".")[2] or "weight"
        owner._parameters[name] = nn.Parameter(value, requires_grad=weight.requires_grad)
        take_out(model, [site], linear.names)
        done.append(Step(merge_branch.name, site.fqn, f"adapters: {adapters.told()}", "W + ΔW", ""))
    return done


def _nothing(branches: dict[str, Branch]) -> str:
    if not branches:
        return "the model carries no branches, so there is nothing to merge"
    answers = [branch.merged() for branch in branches.values()]
    reasons = list(dict.fromkeys(answer.reason for answer in answers if isinstance(answer, Refusal)))
    if any(adapters_of(branch) is not None for branch in branches.values()):
        reasons.append("every adapter is off (noble_fx.use_adapters)")
    told = "; ".join(reasons)
    return (
        f"there is nothing linear to merge: {told}. noble_fx.fold(model) folds a σ's constants, and export_onnx writes "
        "what is nonlinear"
    )

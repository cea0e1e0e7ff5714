"""Experts of a mixture, whose matrices are stacked in one parameter, with a branch for each expert.

    gate_up_proj [E, 2I, H]   down_proj [E, H, I]        or transposed, [E, H, 2I] and [E, I, H]

    rows of expert e:   h = x Wg_eᵀ + b_e + noble_e(x)      y = gate(h) Wd_eᵀ + noble_e(·)

The classes that transformers decorates with `use_experts_implementation` share no base, only this computation, of which
the library has several forms ("eager", "grouped_mm", "batched_mm"). The class here has branches in each of them, the
rows sorted by expert, so that it costs what the rows do. Nothing is imported: a class is known by its forward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.branches.experts import BranchGroup, StackedBranches
from noble_fx.branches.grouped import Gathered, Groups, Sorted, ends, has_operator, sorted_rows, taken
from noble_fx.distributed import is_distributed
from noble_fx.errors import CaptureError, Refusal
from noble_fx.layers.base import Augmented, LayerRow, class_with_branch, plain_class
from noble_fx.layers.experts_probe import why_another_maths
from noble_fx.torch_state import autocast_is_on, without_autocast

EAGER = "stacked experts, computed together"
PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
_FORMS = (None, "eager", "grouped_mm", "batched_mm")  # whose maths is the one below
_DECORATOR = "transformers.integrations.moe"
_PARALLEL = "its experts are spread over processes; transform the model before that"


class WithStacks(Augmented):
    """A module whose `noble` holds `StackedBranches` by parameter name; it costs nothing where these are off."""

    def branched(self) -> bool:
        """Whether any of its branches is on."""
        held: Any = self.noble
        return any(branches.enabled for branches in held.values())

    def beside_rows(self, y: Tensor, name: str, x: Tensor, groups: Groups | None) -> Tensor:
        """y, the product of x with the stacked weight of that name, and its branches."""
        held: Any = self.noble
        if name not in held or not held[name].enabled:
            return y
        branches: StackedBranches = held[name]
        return y + branches(x, groups).to(y.dtype)


class WithExperts(WithStacks):
    """Experts of transformers' contract: (hidden [T, H], index [T, k], weights [T, k]) -> [T, H]."""

    config: Any
    num_experts: int
    act_fn: Any
    post_expert_norm: Any
    _apply_gate: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.branched():
            return super(Augmented, self).forward(*args, **kwargs)  # type: ignore[misc]
        form = getattr(getattr(self, "config", None), "_experts_implementation", None)
        if form not in _FORMS or getattr(self, "_is_expert_parallel", False):
            why = _PARALLEL if form in _FORMS else _unknown_form(form)
            raise CaptureError(f"{plain_class(self).__qualname__} cannot run with its branches: {why}")  # type: ignore[arg-type]
        hidden, index, weights = (*args, *(kwargs[name] for name in self._argument_names[len(args) : 3]))
        return self.routed(hidden, index, weights, form)

    def routed(self, hidden: Tensor, index: Tensor, weights: Tensor, form: str | None = "eager") -> Tensor:
        """What the class computes, to rounding, with whatever branches are on."""
        count, k = self.num_experts, index.shape[-1]
        x, groups, order = _by_expert(hidden, index, count, gathered=form == "batched_mm" or not has_operator(hidden))
        gated = bool(getattr(self, "has_gate", True))
        h = self._project(x, "gate_up_proj" if gated else "up_proj", groups, form)
        y = self._project(self._apply_gate(h) if gated else self.act_fn(h), "down_proj", groups, form)
        if getattr(self, "has_post_expert_norm", False):
            y = self.post_expert_norm(y)
        scale = weights.reshape(-1)
        y = y * (scale if order is None else taken(scale, order)).unsqueeze(-1)
        y = y if order is None else taken(y, _inverse(order))
        return y.view(hidden.shape[0], k, y.shape[-1]).sum(1).to(hidden.dtype)

    def _project(self, x: Tensor, name: str, groups: Any, form: str | None) -> Tensor:
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias", None)
        stacked = weight.transpose(-2, -1) if getattr(self, "is_transposed", False) else weight
        if form == "grouped_mm":  # the library's own runs in the dtype of the weight, and autocast does not know it
            x = x.to(weight.dtype)
        if form == "grouped_mm" and autocast_is_on(x.device.type):
            with without_autocast(x.device.type):
                y = groups.product(x, stacked)
        else:
            y = groups.product(x, stacked)
        y = y if bias is None else y + groups.rows(bias).to(y.dtype)
        return self.beside_rows(y, name, x, groups)


def _by_expert(hidden: Tensor, index: Tensor, count: int, gathered: bool) -> tuple[Tensor, Groups, Tensor | None]:
    """A row [S, H] for each token and expert of its, whose each is, and their places among [T * k]; None: in order."""
    experts, k = index.reshape(-1), index.shape[-1]
    if gathered:
        return hidden.repeat_interleave(k, dim=0), Gathered(experts), None
    experts, order = experts.sort()
    return taken(hidden, order // k), Sorted(ends(experts, count), experts), order


def _inverse(order: Tensor) -> Tensor:
    return torch.zeros_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))


class WithDenseExperts(WithStacks):
    """Llama 4's experts, each of which sees every token: [E * T, H] -> [E * T, H]."""

    gate_up_proj: Tensor
    down_proj: Tensor
    act_fn: Any

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.branched():
            return super(Augmented, self).forward(hidden_states)  # type: ignore[misc]
        x = hidden_states.view(self.gate_up_proj.shape[0], -1, self.gate_up_proj.shape[1])
        gate, up = self.beside_rows(x @ self.gate_up_proj, "gate_up_proj", x, None).chunk(2, dim=-1)
        h = up * self.act_fn(gate)
        return self.beside_rows(h @ self.down_proj, "down_proj", h, None).view(-1, self.down_proj.shape[2])


class WithParallelExperts(WithStacks):
    """JetMoE's stacked matrices: rows [S, K] sorted by expert, and how many each has -> [S, N]."""

    weight: Tensor

    def forward(self, inputs: Tensor, expert_size: Any) -> Tensor:
        y: Tensor = super(Augmented, self).forward(inputs, expert_size)  # type: ignore[misc]
        if not self.branched():
            return y
        sizes = expert_size if isinstance(expert_size, Tensor) else torch.tensor(expert_size, device=inputs.device)
        offsets = sizes.cumsum(0).to(torch.int32)
        return self.beside_rows(y, "weight", inputs, sorted_rows(offsets, inputs.shape[0]))


# --- which classes --------------------------------------------------------------------------------------------------


def is_known(module: Any) -> bool:
    """True for experts whose class has the decorator's forward, and no other over it."""
    forward: Any = plain_class(module).forward
    decorated = getattr(forward, "__globals__", {}).get("__name__") == _DECORATOR and hasattr(forward, "__wrapped__")
    parameters = getattr(module, "_parameters", {})
    stacks = [parameters.get(name) for name in PROJECTIONS]
    return decorated and sum(stack is not None and stack.ndim == 3 for stack in stacks) == 2


def _obstacle(module: Any) -> Refusal | None:
    form = getattr(getattr(module, "config", None), "_experts_implementation", None)
    if form not in _FORMS:
        return Refusal(_unknown_form(form))
    if refusal := _spread(module):
        return refusal
    return why_another_maths(module, plain_class(module), _without_branches)


def _spread(module: Any) -> Refusal | None:
    tensors = [tensor for tensor in module._parameters.values() if tensor is not None]
    parallel = getattr(module, "_is_expert_parallel", False) or any(map(is_distributed, tensors))
    return Refusal(_PARALLEL) if parallel else None


def _without_branches(module: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    module.__class__ = class_with_branch(WithExperts, type(module))
    module.noble = BranchGroup()
    y: Tensor = module.routed(*inputs)
    return y


def _unknown_form(form: Any) -> str:
    return (
        f"experts_implementation={form!r} computes them elsewhere, where no branch can be added; "
        "set_experts_implementation('grouped_mm') of the model runs them here"
    )


def _row(cls: type | str, mixin: type[Augmented], layout: str, parameters: tuple[str, ...] = PROJECTIONS) -> LayerRow:
    return LayerRow(
        cls,
        shape=lambda module: None,  # its stacks are listed, each on its own
        mixin=mixin,
        layout=layout,
        obstacle=_spread,
        eager=lambda module: Refusal(EAGER),
        beside=False,
        parameters=parameters,
        bias="{parameter}_bias",
    )


_MODELS = "transformers.models"
ROWS = (
    _row(f"{_MODELS}.llama4.modeling_llama4.Llama4TextExperts", WithDenseExperts, "[E, K, N]"),
    _row(f"{_MODELS}.jetmoe.modeling_jetmoe.JetMoeParallelExperts", WithParallelExperts, "[E, N, K]", ("weight",)),
)
_FAMILY = replace(_row(nn.Module, WithExperts, "[E, N, K]"), obstacle=_obstacle)
FAMILIES = (
    replace(_FAMILY, recognises=lambda module: is_known(module) and not getattr(module, "is_transposed", False)),
    replace(_FAMILY, recognises=is_known, layout="[E, K, N]"),
)

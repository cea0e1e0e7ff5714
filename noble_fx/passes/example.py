"""A pass's rewrite shown on a small model: what stands in the graph before it and after it, written as Python.

    Example(before=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
            after=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)))

Both are functions of the model and its inputs. fx traces them to graphs, with every submodule a single call; Python
runs them for the numbers. `noble_fx.passes.check` does both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from noble_fx.bases.low_rank import LowRank
from noble_fx.branches.experts import BranchGroup, expert_branches
from noble_fx.branches.noble import NobleBranch
from noble_fx.config import NobleConfig
from noble_fx.layers.linear import NobleLinear
from noble_fx.layers.restructure import structure
from noble_fx.sites.site import BLOCK
from noble_fx.tracing_lock import tracing

IN, OUT, RANK, EXPERTS = 6, 7, 2, 3


def layer(act: str = "cosnet", fused: bool = True) -> nn.Module:
    """A linear layer [OUT, IN] with its branch in `noble`, as the reference recipe draws it."""
    linear = NobleLinear.build(IN, OUT, RANK, act=act, preset="reference")
    _prepare(linear.noble, fused)
    return linear


def factorized_layer() -> nn.Module:
    """Such a layer, its W the product of two of rank RANK + 1."""
    linear: Any = layer()
    base = LowRank(IN, OUT, RANK + 1)
    base.fill(linear.weight)
    structure(linear, base, linear.bias)
    return linear


def layers() -> nn.Module:
    """Two such layers, `q` and `k`."""
    return nn.ModuleDict({"q": layer(), "k": layer()})


def around() -> nn.Module:
    """A model whose `block` has a branch around it, [.., IN] -> [.., IN]."""
    model, block = nn.Module(), nn.Module()
    block.noble = NobleBranch(IN, IN, RANK, NobleConfig(preset="reference"), role=BLOCK)
    _prepare(block.noble, fused=False)
    model.block = block
    return model


def parameter(*shape: int, experts: int = 0) -> Callable[[], nn.Module]:
    """Makes a module of one bare parameter `w`, with its branch, or one for each of its experts, in `noble.w`."""

    def build() -> nn.Module:
        model = nn.Module()
        model.w = nn.Parameter(torch.randn(shape))
        branches = [NobleBranch(IN, OUT, RANK, NobleConfig(preset="reference")) for _ in range(experts or 1)]
        for branch in branches:
            _prepare(branch, fused=True)
        model.noble = BranchGroup({"w": expert_branches(branches) if experts else branches[0]})
        return model

    return build


def _prepare(branch: Any, fused: bool) -> None:
    """Draw U large, so that a branch that is lost or doubled cannot hide in a tolerance."""
    with torch.no_grad():
        branch.up.normal_()
    branch.prepare("" if fused else "fuse=False")


def branch_operands(branch: Any) -> tuple[Any, ...]:
    """What `noble_fx::linear` takes of a branch: D, d, U, σ's tensors, σ's key."""
    act = [*branch.act.parameters(), *branch.act.buffers()]
    return branch.down, branch.down_bias, branch.up, act, branch.key


@dataclass(frozen=True)
class Example:
    """A rewrite on a small model: `before` and `after` are functions (model, *inputs) that fx can trace.

    `truth` is what the rewritten graph must compute, where that is another thing than `before` because the pass adds
    something or takes it away. `model` builds the model, `inputs` are the shapes of its inputs.
    """

    before: Callable[..., Any]
    after: Callable[..., Any]
    truth: Callable[..., Any] | None = None
    model: Callable[[], nn.Module] = layer
    inputs: tuple[tuple[int, ...], ...] = ((5, IN),)

    def reversed(self) -> Example:
        """The way back: of the pass that undoes this one."""
        return Example(self.after, self.before, self.truth, self.model, self.inputs)


class _EveryModuleOneCall(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def traced(function: Callable[..., Any], model: nn.Module) -> fx.GraphModule:
    """The graph of `function(model, *inputs)`, over the model's own modules and parameters."""
    root = type("Model", (nn.Module,), {"forward": function})()
    _share(model, root)
    with tracing():
        graph_module = fx.GraphModule(root, _EveryModuleOneCall().trace(root))
    _share(model, graph_module)  # those that the graph does not read as well
    return graph_module


def _share(model: nn.Module, other: nn.Module) -> None:
    for table in ("_modules", "_parameters", "_buffers"):
        other.__dict__[table] = vars(model)[table]

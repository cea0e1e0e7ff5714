"""The graphs of a captured model, run node by node, and what is told of the sites in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from noble_fx.branches import trace
from noble_fx.exporting import leaves_this_process
from noble_fx.ops.operands import Operands, SiteOperands
from noble_fx.passes.match import ModelGraph, parameter_reads
from noble_fx.schema import LINEAR, LINEAR_GROUP
from noble_fx.torch_state import without_autocast
from noble_fx.training.looking.observer import Call, Observer, See, tell, unseen


class GraphObserver(Observer):
    """Runs a graph module's graph with everything that its sites compute in sight."""

    def __init__(self, module: fx.GraphModule, check: Callable[[], None], names: dict[int, str], see: See):
        super().__init__(module, "forward")
        self.check, self.names, self.see = check, names, see

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if leaves_this_process():
            return self.run(*args, **kwargs)
        self.check()
        module: Any = self.module
        return _Run(module, self.names, self.see).of(*args, **kwargs)


def called_modules(module: fx.GraphModule) -> Iterator[nn.Module]:
    """The modules that a graph calls as they are, and those inside."""
    for node in module.graph.nodes:
        if node.op == "call_module":
            yield from module.get_submodule(str(node.target)).modules()


class _Run(fx.Interpreter):
    """One run of a graph; its arguments are those of the graph's own forward."""

    def __init__(self, module: fx.GraphModule, names: dict[int, str], see: See):
        super().__init__(module)
        self.names, self.see, self.told = names, see, not unseen()
        self.model = ModelGraph(module)
        self.sums: dict[fx.Node, tuple[str, fx.Node, Tensor, Tensor]] = {}  # where a branch's output is added

    def of(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(type(self.module).forward).bind(self.module, *args, **kwargs)
        bound.apply_defaults()
        self.arguments = dict(bound.arguments)
        return self.run()

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.arguments[str(target).lstrip("*")]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.told and n.target is LINEAR:
            self._fused(n, [value])
        elif self.told and n.target is LINEAR_GROUP:
            self._fused(n, value)
        elif self.told and n.op == "call_module":
            self._branch(n, value)
        elif n in self.sums:
            self._sum(n, value)
        return value

    def _fused(self, node: fx.Node, results: list[Tensor]) -> None:
        operands: Operands[Tensor] = Operands.of_node(node).map(lambda read: self.env[read])
        for read, own, y in zip(Operands.of_node(node).sites, operands.sites, results, strict=True):
            stages = partial(_stages, operands.x, own, operands.key)
            owner = self.model.owning_branch(parameter_reads(read.down)[0])
            assert owner is not None
            call = Call(self.names[id(owner[1])], operands.x, y, partial(_last, stages), stages)
            tell(self.see, call)

    def _branch(self, node: fx.Node, output: Any) -> None:
        site = self.names.get(id(self.model.module(node.target)))
        place = _sum_with(node)
        if site is not None and place is not None:
            (x, *_), _ = self.fetch_args_kwargs_from_env(node)
            self.sums[place[0]] = site, place[1], x, output.detach()

    def _sum(self, node: fx.Node, y: Any) -> None:
        site, other, x, output = self.sums.pop(node)
        stages = [("base output", self.env[other]), ("branch", output)]
        tell(self.see, Call(site, x, y, lambda: [output], lambda: stages))


def _sum_with(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Where a branch's output is added to its layer's, and the node of that one; the passes put views between alone."""
    while len(node.users) == 1:
        (user,) = node.users
        if (
            getattr(user.target, "__name__", "").split(".")[0] in ("add", "add_to_block")
            and len(user.all_input_nodes) == 2
        ):
            return user, next(read for read in user.all_input_nodes if read is not node)
        node = user
    return None


def _stages(x: Tensor, site: SiteOperands[Tensor], key: str) -> Iterator[tuple[str, Tensor]]:
    yield "base output", F.linear(x, site.weight, site.bias)
    h = F.linear(x, site.down, site.down_bias)
    yield "h", h
    with without_autocast(h.device.type):
        t = trace.eager(key, list(site.act), h)
    yield "σ", t
    yield "branch", F.linear(t, site.up)


def _last(stages: Callable[[], Iterator[tuple[str, Tensor]]]) -> list[Tensor]:
    *_, (_, output) = stages()
    return [output]

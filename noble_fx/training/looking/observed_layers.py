"""Layers that run as modules, and what each told of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from noble_fx.attach.switched_off import without_branch
from noble_fx.branches.base import Branch
from noble_fx.layers.attention import WithProjections
from noble_fx.layers.base import Augmented
from noble_fx.layers.block import AroundBlock, hidden_of
from noble_fx.training.looking.observer import Call, Observer, See, in_place, tell, unseen


def layer_observers(layer: Augmented, names: dict[int, str], see: See) -> Iterator[Observer]:
    """What must stand in a layer's methods so that `see` is told of its calls; `names` has its site's name."""
    if isinstance(layer, AroundBlock):
        kept = _Outputs(layer, "without_branch"), _Outputs(layer, "branch_output")
        yield from kept
        yield _Block(layer, names[id(layer.noble)], kept, see)
    elif isinstance(layer.noble, Branch):
        outputs = _Outputs(layer, "branch_output")
        yield outputs
        yield _Layer(layer, names[id(layer.noble)], outputs, see)
    elif isinstance(layer, WithProjections):
        held: Any = layer.noble
        outputs_of = {name: _Outputs(branch, "forward") for name, branch in held.items()}
        yield from outputs_of.values()
        yield _Projections(layer, {name: names[id(branch)] for name, branch in held.items()}, outputs_of, see)


class _Outputs(Observer):
    """Keeps what a branch gives, until the site has been told of: where it ran as a module, it must not run again."""

    def __init__(self, module: Any, name: str):
        super().__init__(module, name)
        self.kept: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.run(*args, **kwargs)
        self.kept.append(hidden_of(output).detach())
        return output


class _Layer(Observer):
    def __init__(self, layer: Any, site: str, outputs: _Outputs, see: See):
        super().__init__(layer, "forward")
        self.site, self.outputs, self.see = site, outputs, see

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self.module
        self.outputs.kept = []
        y = self.run(*args, **kwargs)
        kept, self.outputs.kept = self.outputs.kept, []
        if layer.noble.enabled and not unseen():
            x: Any = args[0] if args else kwargs.get(layer._input_name)
            output = partial(_branch_of, self.outputs.run, layer, x)
            base = partial(self.run, *args, **kwargs)
            stages = partial(_stages, layer.noble, base, output)
            tell(self.see, Call(self.site, x, y, lambda: kept or [output()], stages))
        return y


class _Block(Observer):
    """A block, which is not run again for its own result: it may have kept keys and values."""

    def __init__(self, block: Any, site: str, kept: tuple[_Outputs, _Outputs], see: See):
        super().__init__(block, "forward")
        self.site, self.kept, self.see = site, kept, see

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block: Any = self.module
        for outputs in self.kept:
            outputs.kept = []
        y = self.run(*args, **kwargs)
        (base, added), self.kept[0].kept, self.kept[1].kept = [outputs.kept for outputs in self.kept], [], []
        if added and not unseen():
            x: Any = block.in_stored_dtype(args[0] if args else kwargs[block._input_name])

            def stages() -> list[tuple[str, Tensor]]:
                return [("base output", base[0]), *block.noble.stages(x)]

            tell(self.see, Call(self.site, x, hidden_of(y), lambda: added, stages))
        return y


def _branch_of(branch_output: Callable[[Tensor], Tensor], layer: Any, x: Tensor) -> Tensor:
    return branch_output(layer.in_stored_dtype(x))


class _Projections(Observer):
    """The projections of an `nn.MultiheadAttention`, which are calls of one method."""

    def __init__(self, layer: Any, sites: dict[str, str], outputs: dict[str, _Outputs], see: See):
        super().__init__(layer, "project")
        self.sites, self.outputs, self.see = sites, outputs, see

    def __call__(self, x: Tensor, name: str, bias: Tensor | None, rows: slice | None = None) -> Any:
        outputs = self.outputs.get(name)
        if outputs is None:
            return self.run(x, name, bias, rows)
        outputs.kept = []
        y = self.run(x, name, bias, rows)
        kept, outputs.kept = outputs.kept, []
        if kept and not unseen():
            branch: Any = outputs.module
            stages = partial(_stages, branch, partial(self.run, x, name, bias, rows), partial(branch, x, rows))
            tell(self.see, Call(self.sites[name], x, y, lambda: kept, stages))
        return y


def _stages(branch: Any, base: Callable[[], Tensor], output: Callable[[], Tensor]) -> list[tuple[str, Tensor]]:
    """The layer alone, and then what its branch computes on the way to its output."""
    with without_branch(branch):
        found = [("base output", base())]

    class Noting(Observer):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found.extend(branch.stages(*args, **kwargs))
            return found[-1][1]

    with in_place([Noting(branch, "forward")]):
        output()
    return found

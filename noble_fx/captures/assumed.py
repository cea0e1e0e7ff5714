"""What a graph takes for granted of the model that it runs for, looked at before every run.

    attributes that forward read         constants of the graph: the same as when it was made
    children                             the same modules
    modules whose place the graph takes  the hooks that were traced and no others, no forward of an instance's own
    branches whose place it takes        unchanged
    modules asked for their mode         in the mode in which they were traced

Names are kept, and the values taken from the model itself, so that a copy and a pickle look at their own.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from noble_fx.branches.base import Branch
from noble_fx.captures.base import Declined
from noble_fx.captures.values import MISSING, Frozen, SameTensor, Unfollowed, is_plain, names_of, same, state
from noble_fx.captures.watch import Path, Watch, shown
from noble_fx.errors import CaptureError, Refusal

_REMEDY = "noble_fx.remove(model), then transform it again; capture='modules' runs the model's own Python"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Assumed:
    """By name: what forward read, the modules that it called, and those that it asked for their mode."""

    reads: tuple[Path, ...] = ()
    called: tuple[str, ...] = ()
    modes: dict[str, bool] = field(default_factory=dict)
    any_mode: bool = False  # one graph for both modes: these modules need only be in the same one
    broken: str = ""  # why it did not hold any more when the model was copied

    @classmethod
    def of(cls, watches: Iterable[Watch], any_mode: bool) -> Assumed:
        """What was noted, together."""
        reads: dict[Path, Frozen] = {}
        called: dict[str, None] = {}
        modes: dict[str, bool] = {}
        for watch in watches:
            reads |= watch.reads
            called |= dict.fromkeys(watch.called)
            modes |= watch.modes
        return cls(tuple(reads), tuple(called), modes, any_mode)

    def without_tensors(self, watches: Iterable[Watch]) -> Assumed:
        """The same for a graph that reads a tensor in an attribute whenever it runs."""
        live = {path for watch in watches for path, value in watch.reads.items() if isinstance(value, SameTensor)}
        return replace(self, reads=tuple(path for path in self.reads if path not in live))


class _Entry(NamedTuple):
    """Something that must stay as it is: `name` of `owner`, which is at `path`."""

    owner: Any
    name: str
    value: Any
    path: Path


class _Table(NamedTuple):
    """The hooks or the children of the module called `module`, and those that it had."""

    module: str
    table: dict[Any, Any]
    values: tuple[Any, ...]
    what: str


class Check:
    """The same of one model, with the values that it has now; calling it raises `CaptureError` where one is another."""

    def __init__(self, model: nn.Module, assumed: Assumed, live: Container[str] = ()):
        """`live` are the modules that the graph calls as they are."""
        self.assumed = assumed
        self.names = names_of(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        self.modes = [(modules[name], mode, name) for name, mode in assumed.modes.items()]
        self.called = {name: modules[name] for name in assumed.called if name}
        self.plain: list[_Entry] = []
        self.children: list[_Entry] = []
        self.others: list[_Entry] = []
        for path in assumed.reads:
            self._take(modules[path[0]], path)
        read = {path[0]: modules[path[0]] for path in assumed.reads if path[-1] == "_modules"}
        self.tables = [
            *(_table(name, module, kind) for name, module in self.called.items() for kind in HOOKS),
            *(_table(name, module, "_modules") for name, module in read.items()),
        ]
        self.live = live
        self.take_branches(model)

    def take_branches(self, model: nn.Module) -> None:
        """Take the branches as they are now for those that the graph was made with."""
        self.branches: list[tuple[str, Callable[[], bool]]] = []
        self.parts: dict[str, nn.Module] = {}
        for name, branch in model.named_modules():
            if isinstance(branch, Branch) and branch.bound is not None:
                form = branch.fused_form()
                if not isinstance(form, Refusal):
                    self.branches.append((name, form.unchanged))
                self.parts |= {".".join(filter(None, (name, inner))): part for inner, part in branch.named_modules()}
        self.part_tables = [
            _table(name, part, kind) for name, part in self.parts.items() for kind in (*HOOKS, "_modules")
        ]
        self.run_past(self.live)

    def _take(self, owner: Any, path: Path) -> None:
        for name in path[1:-1]:
            owner = getattr(owner, name)
        name = path[-1]
        value = getattr(owner, name, MISSING)
        if isinstance(value, nn.Module) and name in getattr(owner, "_modules", ()):
            self.children.append(_Entry(owner._modules, name, value, path))
        elif is_plain(value):
            self.plain.append(_Entry(owner, name, value, path))
        elif name != "_modules":
            self.others.append(_Entry(owner, name, self._state(owner, name), path))

    def _state(self, owner: Any, name: str) -> Frozen:
        try:
            return state(owner, name, self.names)
        except Unfollowed as reason:
            return str(reason)

    def run_past(self, live: Container[str]) -> None:
        """From now on the graph calls the modules `live` as they are, so that nothing is asked of those."""
        self.live = live
        inside = [*self.called.items(), *self.parts.items()]
        self._children = [entry for entry in self.children if ".".join(filter(None, entry.path)) not in live]
        self._tables = [entry for entry in (*self.tables, *self.part_tables) if not _is_in(entry.module, live)]
        self._inside = [(name, module) for name, module in inside if not _is_in(name, live)]
        self._branches = [entry for entry in self.branches if not _is_in(entry[0], live)]

    def __call__(self) -> None:
        self._check_values()
        for module, mode, name in self.modes:
            expected = self.modes[0][0].training if self.assumed.any_mode else mode
            if module.training is not expected:
                raise CaptureError(
                    f"{name or 'the model'} is in {_mode(module.training)} mode, where the graph was made in "
                    f"{_mode(expected)} mode; put the whole model in one mode, or: {_REMEDY}"
                )

    def _check_values(self) -> None:
        if self.assumed.broken:
            raise CaptureError(self.assumed.broken)
        for owner, name, expected, path in self.plain:
            value = getattr(owner, name, MISSING)
            if value is not expected and not same(value, expected):
                _changed(path, expected, value)
        for table, name, expected, path in self._children:
            if table.get(name) is not expected:
                raise CaptureError(f"{shown(path)} is another module than the graph was made with; {_REMEDY}")
        for module, table, expected, what in self._tables:
            if len(table) != len(expected) or (expected and tuple(table.values()) != expected):
                raise CaptureError(
                    f"{module or 'the model'} has other {what} than when the graph was made, which stands in its "
                    f"place; {_REMEDY}"
                )
        if not torch.compiler.is_dynamo_compiling():  # what follows is more than Dynamo can trace
            self._check_others()

    def as_now(self) -> Assumed:
        """What a copy takes for granted; where the model itself would not run any more, neither does its copy."""
        try:
            self._check_values()
        except CaptureError as reason:
            return replace(self.assumed, broken=str(reason))
        return self.assumed

    def _check_others(self) -> None:
        for name, module in self._inside:
            if "forward" in vars(module):
                raise CaptureError(f"the forward of {name!r} was replaced, and the graph runs what it was; {_REMEDY}")
        for name, unchanged in self._branches:
            if not unchanged():
                raise CaptureError(f"the branch {name!r} computes something else than the graph does; {_REMEDY}")
        for owner, name, expected, path in self.others:
            if not same(self._state(owner, name), expected):
                _changed(path, MISSING, MISSING)
        if torch_module._has_any_global_hook() and (hook := _foreign_global_hook()):
            raise CaptureError(f"the global hook {hook!r} would not run for the modules inside a graph; {_REMEDY}")


def check_hooks(model: nn.Module) -> None:
    """Raise `Declined` for hooks that a graph in the place of a forward would lose, whatever is traced."""
    if hook := _foreign_global_hook():
        raise Declined(f"the global hook {hook!r} would not run for the modules inside a graph")
    for name, module in model.named_modules():
        if name and (module._backward_hooks or module._backward_pre_hooks):
            raise Declined(f"{name} has backward hooks, which a graph would lose")


def _table(name: str, module: nn.Module, kind: str) -> _Table:
    table = vars(module)[kind]
    return _Table(name, table, tuple(table.values()), "children" if kind == "_modules" else "hooks")


def _is_in(name: str, live: Container[str]) -> bool:
    """Whether the module is one of `live` or inside one."""
    parts = name.split(".")
    return any(".".join(parts[:i]) in live for i in range(1, len(parts) + 1))


def _changed(path: Path, before: Any, now: Any) -> NoReturn:
    hidden = before is MISSING or torch.compiler.is_dynamo_compiling()  # Dynamo cannot trace what shows them
    values = "" if hidden else f" from {before!r} to {'nothing' if now is MISSING else repr(now)}"
    raise CaptureError(
        f"{shown(path)} was changed{values} after the graph was made, which has it as a constant; set it back, or: "
        f"{_REMEDY}"
    )


def _mode(training: bool) -> str:
    return "train" if training else "eval"


def _foreign_global_hook() -> Any:
    """A global hook of nn.Module that is not PyTorch's own; those only keep track of which module runs."""
    hooks = [hook for name in HOOKS for hook in getattr(torch_module, f"_global{name}", {}).values()]
    return next((hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith("torch.")), None)

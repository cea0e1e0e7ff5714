"""What the passes did to one graph: a line a pass, and the operators before and after."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from noble_fx.passes.history import Program, Step
from noble_fx.passes.pipeline import PIPELINES

LOOKING = "looking"
_REWRITES = {rule.name: rule.rewrite for pipeline in PIPELINES.values() for rule in pipeline}


@dataclass(frozen=True)
class PassAccount:
    """One pass over one graph."""

    name: str
    rewrite: str  # what it does, in one line: "before  ->  after"
    rewrites: int  # how often it did
    skips: dict[str, int]  # how often it did not, by the reason

    @property
    def hits(self) -> int:
        """How many nodes it looked at."""
        return self.rewrites + sum(self.skips.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "hits": self.hits}


@dataclass(frozen=True)
class GraphAccount:
    """One graph of a model."""

    mode: str  # as in `Program`; "looking" for one that nothing runs
    nodes: int
    passes: tuple[PassAccount, ...]
    operators_before: dict[str, int] | None  # as it was captured; None where nothing was noted
    operators: dict[str, int]
    shared: tuple[tuple[str, ...], ...]  # the sites of each grouped call, as far as their names are known
    groups: tuple[int, ...]  # how many sites each grouped call takes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        shared = [list(names) for names in self.shared]
        passes = [each.to_dict() for each in self.passes]
        return {**vars(self), "passes": passes, "shared": shared, "groups": list(self.groups)}


def graph_account(program: Program) -> GraphAccount:
    """The account of one graph."""
    steps: dict[str, list[Step]] = {}
    for step in program.history:
        steps.setdefault(step.rule, []).append(step)
    return GraphAccount(
        mode=program.mode,
        nodes=len(program.graph_module.graph.nodes),
        passes=tuple(_pass(name, own) for name, own in steps.items()),
        operators_before=program.operators_before,
        operators=program.operators,
        shared=program.shared,
        groups=program.groups,
    )


def _pass(name: str, steps: list[Step]) -> PassAccount:
    skips = Counter(step.skipped for step in steps if step.skipped)
    return PassAccount(name, _REWRITES.get(name, ""), len(steps) - skips.total(), dict(skips))

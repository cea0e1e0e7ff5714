"""The account of one model as data: what every view of it is made from, in the terminal, as a page, as a difference.

A FLOP count is that of the matrix products, two a multiply-add, as `torch.utils.flop_counter` counts them, for one row
of x: a token, a position, and of stacked experts a row that is sent to one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from noble_fx.branches.base import Branch
from noble_fx.explaining.graphs import GraphAccount
from noble_fx.explaining.kernels import KernelAccount
from noble_fx.passes.history import Program
from noble_fx.sites.patterns import pattern
from noble_fx.sites.site import Site

CARRIED, PLANNED, LEFT_OUT = "carried", "planned", "left out"
FUSED, EAGER = "fused", "eager"


@dataclass(frozen=True)
class SiteAccount:
    """One linear map and its branch, if it has one."""

    site: Site
    state: str  # "carried": it has a branch; "planned": `transform` would give it one; "left out"
    act: str = ""  # σ, empty where there is no branch
    base_flops: int = 0  # of the map itself, a row
    branch_flops: int | None = 0  # of its branch, a row; None where nobody can tell
    kernels: bool | None = None  # whether there are generated kernels; None where there is no branch, or none to ask
    no_kernel: str = ""  # why there are none

    @property
    def pattern(self) -> str:
        """Its name with `*` for every number: the same for equal maps of repeated blocks."""
        return pattern(self.site.fqn)

    @property
    def way(self) -> str:
        """ "fused": one operator computes map and branch; "eager": the branch runs as a module; empty: no branch."""
        if self.state == LEFT_OUT:
            return ""
        return EAGER if self.site.unfused else FUSED

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: those of the site, and its own beside them."""
        own = {name: value for name, value in vars(self).items() if name != "site"}
        return {**self.site.to_dict(), **own, "pattern": self.pattern, "way": self.way}


@dataclass(frozen=True)
class Account:
    """All that is known of one model, or of a file with one."""

    model: str
    entries: tuple[SiteAccount, ...]
    base_params: int
    branch_params: int
    settings: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)  # as `NobleConfig.to_dict` gives it
    programs: tuple[Program, ...] = ()
    graphs: tuple[GraphAccount, ...] = ()  # what the passes did, a program each
    kernels: tuple[KernelAccount, ...] = ()
    transformed: bool = True  # False: what `transform` would choose with its default settings
    complete: bool = True  # False: maps without a branch are not listed
    runs: bool = True  # False: a file, which says how nothing is run
    # The branches themselves by the names of their sites, for what only values and code show; a file has none.
    branches: Mapping[str, Branch] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every linear map, with a branch or without."""
        return tuple(entry.site for entry in self.entries)

    @property
    def chosen(self) -> tuple[SiteAccount, ...]:
        """The maps that carry a branch, or would."""
        return tuple(entry for entry in self.entries if entry.state != LEFT_OUT)

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """The names of the other maps by the reason, in the order of the model."""
        return _by_reason((entry.site.reason, entry.site.fqn) for entry in self.entries if entry.state == LEFT_OUT)

    @property
    def eager(self) -> dict[str, tuple[str, ...]]:
        """The names of sites whose branch runs as a module, by the reason."""
        return _by_reason((entry.site.unfused, entry.site.fqn) for entry in self.chosen if entry.way == EAGER)

    @property
    def no_kernels(self) -> dict[str, str]:
        """Fused sites that run PyTorch operators on a GPU, too, and why."""
        return {entry.site.fqn: entry.no_kernel for entry in self.entries if entry.no_kernel}

    @property
    def acts(self) -> dict[str, str]:
        """σ of each branch, by the name of its site."""
        return {entry.site.fqn: entry.act for entry in self.chosen}

    @property
    def base_flops(self) -> int:
        """Of one row through every linear map."""
        return sum(entry.base_flops for entry in self.entries)

    @property
    def branch_flops(self) -> int | None:
        """Of one row through every branch; None where that of one is not known."""
        counts = [entry.branch_flops for entry in self.entries]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def planned_params(self) -> int:
        """Parameters of the branches that there are, or would be."""
        return self.branch_params if self.transformed else sum(entry.site.params for entry in self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain JSON values, each program's history included."""
        programs = [
            {"graph": str(program), "history": [vars(step) for step in program.history], **graph.to_dict()}
            for program, graph in zip(self.programs, self.graphs, strict=True)
        ]
        return {
            "model": self.model,
            "transformed": self.transformed,
            "complete": self.complete,
            "settings": self.settings,
            "config": self.config,
            "base_params": self.base_params,
            "branch_params": self.branch_params,
            "base_flops": self.base_flops,
            "branch_flops": self.branch_flops,
            "no_kernels": self.no_kernels,
            "acts": self.acts,
            "sites": [entry.to_dict() for entry in self.entries],
            "left_out": {reason: list(names) for reason, names in self.left_out.items()},
            "eager": {reason: list(names) for reason, names in self.eager.items()},
            "kernels": [kernel.to_dict() for kernel in self.kernels],
            "programs": programs,
        }


def _by_reason(told: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    reasons: dict[str, list[str]] = {}
    for reason, name in told:
        reasons.setdefault(reason, []).append(name)
    return {reason: tuple(names) for reason, names in reasons.items()}

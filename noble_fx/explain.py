"""What was rewritten, for a person: the sites with their roles, ranks and reasons, and what it costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from noble_fx.attach.attach import branch_paths, named_branches
from noble_fx.attach.gone import told_gone
from noble_fx.branches.base import Branch
from noble_fx.captures.base import Examples
from noble_fx.captures.table import captured
from noble_fx.diagrams.dot import to_dot
from noble_fx.diagrams.drawing import draw
from noble_fx.diagrams.mermaid import to_mermaid
from noble_fx.diagrams.site_graph import site_graph
from noble_fx.errors import Refusal
from noble_fx.inspect import known_programs, sites
from noble_fx.ops.available import why_no_kernel
from noble_fx.passes.history import Program
from noble_fx.sites.from_file import read_account, sites_of
from noble_fx.sites.site import Site
from noble_fx.tables import as_text, group, plain, table

if TYPE_CHECKING:
    import networkx as nx
    from rich.console import Group
    from rich.table import Table

WIDTH = 110


@dataclass(frozen=True)
class Explanation:
    """The account of one model; `str()` is a table, `to_dict()` plain JSON values."""

    model: str
    sites: tuple[Site, ...]
    programs: tuple[Program, ...]
    settings: dict[str, str]
    base_params: int
    branch_params: int
    no_kernels: dict[str, str]  # fused sites that run PyTorch operators on a GPU, too, and why
    acts: dict[str, str]  # σ of each branch, by the name of its site
    fused_into: str = "noble_fx::linear"  # the operator that a fused site is; empty for a file, which has others

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain JSON values, each program's history included."""
        return {
            "model": self.model,
            "settings": self.settings,
            "base_params": self.base_params,
            "branch_params": self.branch_params,
            "no_kernels": self.no_kernels,
            "acts": self.acts,
            "sites": [site.to_dict() for site in self.sites],
            "programs": [{"graph": str(p), "history": [vars(step) for step in p.history]} for p in self.programs],
        }

    def to_networkx(self) -> nx.DiGraph:
        """The sites as a graph with what holds them and which read one input; GraphML can hold it whole."""
        facts = {"model": self.model, "base_params": self.base_params, "branch_params": self.branch_params}
        groups = [(names, p.mode != "looking") for p in self.programs for names in p.shared]
        return site_graph(facts, self.sites, self.acts, self.no_kernels, groups)

    def to_dot(self, repeats: bool = False) -> str:
        """The same as a picture, in the language of Graphviz; equal blocks once, unless `repeats` are to be seen."""
        return to_dot(draw(self.to_networkx(), repeats))

    def to_mermaid(self, repeats: bool = False) -> str:
        """The same as a Mermaid flowchart, for Markdown pages; equal blocks once, unless `repeats` are to be seen."""
        return to_mermaid(draw(self.to_networkx(), repeats))

    def __str__(self) -> str:
        return as_text(self, WIDTH)

    def __rich__(self) -> Group:
        return group(*map(plain, self._head()), site_table(self.sites), *map(plain, self._history()))

    def _head(self) -> list[str]:
        chosen = [site for site in self.sites if site.selected]
        counted = "blocks" if any(site.is_block for site in self.sites) else "linear maps"
        share = f" = {self.branch_params / self.base_params:.1%} more" if self.base_params else ""
        lines = [
            f"{self.model}: {len(chosen)} of {len(self.sites)} {counted} carry a branch",
            f"parameters: {self.base_params:,} + {self.branch_params:,} in branches{share}",
        ]
        lines += [f"{name}: {value}" for name, value in self.settings.items() if value]
        eager = Counter(site.unfused for site in chosen if site.unfused)
        lines += [f"eager branch at {count} sites: {reason}" for reason, count in eager.items()]
        if chosen and self.fused_into:
            groups = any(program.groups for program in self.programs if program.mode != "looking")
            grouped = " or one of a noble_fx::linear_group" if groups else ""
            fused = sum(not site.unfused for site in chosen)
            lines.append(f"fused: {fused} sites, each one {self.fused_into}{grouped}")
            if fused:
                lines.append(f"kernels: generated for {fused - len(self.no_kernels)} of {fused} fused sites, on a GPU")
        without = Counter(self.no_kernels.values())
        lines += [f"PyTorch operators at {count} sites: {reason}" for reason, count in without.items()]
        return lines

    def _history(self) -> list[str]:
        lines = []
        for program in self.programs:
            if program.mode == "looking":
                lines.append("a graph to look at (noble_fx.programs; the modules themselves run):")
            done = Counter(step.rule for step in program.history if not step.skipped)
            lines += [f"pass {name}: {count} rewrites" for name, count in done.items()]
            if program.groups:
                calls = f"{len(program.groups)} calls of noble_fx::linear_group"
                lines.append(f"grouped: {sum(program.groups)} sites that read the same input as another, {calls}")
        return lines


def site_table(sites_shown: tuple[Site, ...]) -> Table:
    """The sites as a table; equal ones of repeated blocks share a row, their numbers shown as `*`."""
    shown_sites = table(header_style="bold", padding=(0, 1))
    for name in ("layer", "×", "role", "kind", "K → N", "rank", "params", "reason"):
        shown_sites.add_column(name, justify="right" if name in ("×", "rank", "params") else "left", overflow="fold")
    rows: dict[tuple[Any, ...], list[Site]] = {}
    for site in sites_shown:
        shown = ".".join("*" if part.isdigit() else part for part in site.fqn.split("."))
        shape = f"{site.in_features} → {site.out_features}"
        reason = site.reason + (f" (aliases: {', '.join(site.aliases)})" if site.aliases else "")
        key = (shown, site.role, site.kind, shape, site.rank or "–", reason)
        rows.setdefault(key, []).append(site)
    for (shown, role, kind, shape, rank, reason), equal in rows.items():
        fqn = equal[0].fqn if len(equal) == 1 else shown
        params = f"{sum(site.params for site in equal):,}" if equal[0].selected else "–"
        shown_sites.add_row(*map(plain, (fqn, len(equal), role, kind, shape, rank, params, reason)))
    return shown_sites


def explain(model: nn.Module | str | Path) -> Explanation:
    """What noble_fx found and did in `model`: sites, settings, cost, and the history of every captured graph.

    For the path of an exported ONNX file, what the file says of itself (`ExportError` where it is not one).
    """
    if isinstance(model, str | Path):
        return _of_file(model)
    branches = named_branches(model)
    mine = {id(p) for branch in branches.values() for p in branch.parameters()}
    listed, gone = sites(model), told_gone(model)
    programs, without = known_programs(model, Examples()) if branches else ((), None)
    counted = [(id(p) in mine, p.numel()) for p in model.parameters()]
    return Explanation(
        model=type(model).__name__,
        sites=listed,
        programs=programs,
        settings=_settings(branches) | ({"gone": gone} if gone else {}) | _notes(model) | _without_graph(without),
        base_params=sum(n for ours, n in counted if not ours),
        branch_params=sum(n for ours, n in counted if ours),
        no_kernels=_no_kernels(model, listed),
        acts={site.fqn: _branch(model, site).label for site in listed if site.selected},
    )


def _branch(model: nn.Module, site: Site) -> Branch:
    """The branch of a chosen site, of several experts' the first."""
    branch = model.get_submodule(branch_paths(site)[0])
    assert isinstance(branch, Branch)
    return branch


def _no_kernels(model: nn.Module, sites_shown: tuple[Site, ...]) -> dict[str, str]:
    reasons = {}
    for site in sites_shown:
        if site.selected and not site.unfused:
            branch = _branch(model, site)
            if refusal := why_no_kernel(
                branch.key, branch.rank, branch.dtype, (branch.out_features, branch.in_features)
            ):
                reasons[site.fqn] = refusal.reason
    return reasons


def _of_file(path: str | Path) -> Explanation:
    account = read_account(path)
    listed, act = sites_of(account), account["settings"].get("act", "")
    passes = {f"pass {rule}": f"{count} rewrites" for rule, count in account["passes"].items()}
    versions = ", ".join(f"{name} {version}" for name, version in account["versions"].items())
    return Explanation(
        model=f"{account['model']} in {Path(path).name}",
        sites=listed,
        programs=(),
        settings={**account["settings"], **passes, "written with": versions},
        base_params=account["base_params"],
        branch_params=account["branch_params"],
        no_kernels={},
        acts={site.fqn: act for site in listed if site.selected},
        fused_into="",
    )


def _settings(branches: dict[str, Any]) -> dict[str, str]:
    if not branches:
        return {}
    first = next(iter(branches.values()))
    config = first.config
    folded = sum(branch.folded for branch in branches.values())
    return {
        "rank": str(config.rank),
        "act": first.label,
        "preset": config.recipe.name,
        "capture": config.capture,
        "inference": f"{folded} branches are folded: no constants of σ left beside a matrix" if folded else "",
    }


def _notes(model: nn.Module) -> dict[str, str]:
    """What a capture fixed: the sizes of the inputs, and that there is no cache."""
    notes = [note for capture, module in captured(model) for note in capture.notes(module)]
    return {"export": "; ".join(notes)} if notes else {}


def _without_graph(without: Refusal | None) -> dict[str, str]:
    """Why there is no graph to look at yet; Dynamo's may be there all the same."""
    return (
        {} if without is None else {"graph": f"noble_fx.programs(model, *inputs) makes one; without: {without.reason}"}
    )

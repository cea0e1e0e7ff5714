"""An account in the terminal: a table where there is room for one, else a paragraph for each pattern of names.

Names and reasons are a model's or a file's own: all of them go through `plain`, which makes neither markup nor codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from noble_fx.explaining.account import EAGER, LEFT_OUT, Account, SiteAccount
from noble_fx.explaining.bases import errors_of, kind_of, told_bases
from noble_fx.explaining.graphs import LOOKING, GraphAccount
from noble_fx.explaining.kernels import UNMEASURED, KernelAccount
from noble_fx.sites.patterns import grouped
from noble_fx.tables import NOTHING, plain, table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

NARROW = 90  # columns, below which a table folds every cell
_STYLES = {LEFT_OUT: "dim", EAGER: "yellow"}
_NAME = 36  # columns that a name gets before anything else does
_OPERATORS = 12  # of a graph, that are told one by one


class Report:
    """What rich prints of an account."""

    def __init__(self, account: Account):
        self.account = account

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title, *lines = head(self.account)
        yield _styled(title, "bold")
        yield from map(plain, lines)
        yield from map_rows(rows(self.account.entries), options.max_width)
        yield from map(plain, history(self.account.graphs))


class Row(NamedTuple):
    """Equal maps, under one name."""

    name: str
    times: int
    entry: SiteAccount  # the first of them
    params: int  # of all of their branches
    reason: str
    names: tuple[str, ...]  # of all of them
    kind: str  # the class of the layer, and the form of its W where that is another one


def rows(entries: Iterable[SiteAccount]) -> list[Row]:
    """Equal maps of repeated blocks as one row, in the order of the model."""
    groups = grouped(entries, lambda entry: entry.site.fqn, _alike)
    return [
        Row(
            name=name,
            times=len(equal),
            entry=equal[0],
            params=sum(entry.site.params for entry in equal),
            reason=_reason(equal[0]) + errors_of([entry.site for entry in equal]),
            names=tuple(entry.site.fqn for entry in equal),
            kind=kind_of(equal[0].site),
        )
        for name, equal in groups
    ]


def _alike(entry: SiteAccount) -> Any:
    site = entry.site
    shape = (site.role, kind_of(site), site.in_features, site.out_features, site.rank, site.experts)
    return (*shape, entry.state, entry.act, entry.branch_flops, site.unfused, entry.no_kernel, _reason(entry))


def _reason(entry: SiteAccount) -> str:
    aliases = f" (aliases: {', '.join(entry.site.aliases)})" if entry.site.aliases else ""
    return entry.site.reason + aliases


# --- above the maps --------------------------------------------------------------------------------------------------


def head(account: Account) -> list[str]:
    """The title, and what is to be said of the model as a whole."""
    return [
        *_title(account),
        *_cost(account),
        *told_bases(account.sites),
        *(f"{name}: {value}" for name, value in account.settings.items() if value),
        *_eager(account),
        *_fused(account),
        *(f"left out: {len(names)} × {reason}" for reason, names in account.left_out.items()),
    ]


def _title(account: Account) -> Iterator[str]:
    count, every = len(account.chosen), len(account.entries)
    what = "blocks" if any(site.is_block for site in account.sites) else "linear maps"
    if not account.complete:
        yield f"{account.model}: {count} {what} carry a branch; others are not listed there"
        return
    formed = sum(bool(site.base) for site in account.sites)
    if formed and not account.transformed:
        yield f"{account.model}: W has another form at {formed} of {every} {what}, and none carries a branch"
    else:
        yield f"{account.model}: {count if account.transformed else 0} of {every} {what} carry a branch"
    if not account.transformed:
        yield f"not transformed: noble_fx.transform(model), by its default settings, would give one to {count}"


def _cost(account: Account) -> Iterator[str]:
    own = "in branches" if account.transformed else "in those branches"
    yield f"parameters: {_more(account.base_params, account.planned_params, own)}"
    base, branch = account.base_flops, account.branch_flops
    which = "products of the linear maps" if account.complete else "products of the maps that carry one"
    one = "; of experts, one" if any(site.experts for site in account.sites) else ""
    if branch is None:
        yield f"FLOPs a token or row: {base:,} ({which}{one}); those in branches are not known here"
    elif any(site.is_block for site in account.sites):
        yield f"FLOPs a token or row: {branch:,} {own}; those of the blocks are not counted"
    elif base:
        yield f"FLOPs a token or row: {_more(base, branch, own)} ({which}{one})"


def _more(base: int, added: int, where: str) -> str:
    share = f" = {added / base:.1%} more" if base else ""
    return f"{base:,} + {added:,} {where}{share}"


def _eager(account: Account) -> Iterator[str]:
    for reason, names in account.eager.items():
        yield f"eager branch at {len(names)} sites: {reason}"


def _fused(account: Account) -> Iterator[str]:
    chosen = account.chosen
    if not (chosen and account.runs and account.transformed):
        return
    grouped_calls = any(graph.groups for graph in account.graphs if graph.mode != LOOKING)
    or_group = " or one of a noble_fx::linear_group" if grouped_calls else ""
    thin = sum(entry.way != EAGER and bool(entry.site.base) for entry in chosen)
    fused = sum(entry.way != EAGER for entry in chosen)
    if fused > thin or not thin:
        yield f"fused: {fused - thin} sites, each one noble_fx::linear{or_group}"
    if thin:
        yield f"fused: {thin} sites with a factorized W, each one noble_fx::factorized_linear"
    if fused:
        yield f"kernels: generated for {fused - len(account.no_kernels)} of {fused} fused sites, on a GPU"
    yield from _ways(account.kernels)
    for reason, count in Counter(account.no_kernels.values()).items():
        yield f"PyTorch operators at {count} sites: {reason}"


def _ways(kernels: Iterable[KernelAccount]) -> Iterator[str]:
    """What was measured of each kind of layer, and that nothing was of the others."""
    for kernel in kernels:
        if kernel.chosen:
            what = f"{kernel.in_features} → {kernel.out_features}, rank {kernel.rank}, {kernel.act}, {kernel.dtype}"
            yield f"measured for {what} ×{kernel.sites}:"
            yield from (f"  {asked}: {way}" for asked, way in kernel.chosen.items())
    ways = dict.fromkeys(way for kernel in kernels if not kernel.chosen for way in kernel.forward)
    if ways:
        yield f"ways: {', '.join(ways)}; the fastest one is {UNMEASURED}"


# --- the maps --------------------------------------------------------------------------------------------------------


def map_rows(shown: list[Row], width: int) -> Iterator[Any]:
    """The rows as a table, or where there is no room for one as paragraphs."""
    if width >= NARROW:
        yield _table(shown)
        return
    for row in shown:
        yield _styled(f"{row.name} ×{row.times}", _style(row.entry) or "bold")
        yield from (_styled(f"  {line}", _style(row.entry)) for line in _paragraph(row))


def _table(shown: list[Row]) -> Table:
    made = table(header_style="bold", padding=(0, 1))
    for name in ("layer", "×", "role", "kind", "K → N", "rank", "params", "FLOPs", "reason"):
        right = name in ("×", "rank", "params", "FLOPs")
        whole = min(max((len(row.name) for row in shown), default=0), _NAME) if name == "layer" else None
        made.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right, min_width=whole)
    for row in shown:
        site, entry = row.entry.site, row.entry
        shape = f"{site.in_features} → {site.out_features}"
        cost = (_count(row.params), _flops(entry)) if entry.state != LEFT_OUT else (NOTHING, NOTHING)
        cells = (row.name, row.times, site.role, row.kind, shape, site.rank or NOTHING, *cost, row.reason)
        made.add_row(*map(plain, cells), style=_style(entry))
    return made


def _paragraph(row: Row) -> Iterator[str]:
    site, entry = row.entry.site, row.entry
    yield f"{site.role} · {row.kind} · {site.in_features} → {site.out_features}"
    if entry.state != LEFT_OUT:
        act = f" · {entry.act}" if entry.act else ""
        yield f"rank {site.rank}{act} · {row.params:,} parameters · FLOPs {_flops(entry)}"
    if site.unfused or entry.no_kernel:
        yield f"{'eager' if site.unfused else 'PyTorch operators'}: {site.unfused or entry.no_kernel}"
    yield row.reason if entry.state != LEFT_OUT else f"left out: {row.reason}"


def _flops(entry: SiteAccount) -> str:
    """How much the branch adds to the map."""
    if entry.branch_flops is None or not entry.base_flops:
        return NOTHING
    return f"+{entry.branch_flops / entry.base_flops:.1%}"


def _count(value: int) -> str:
    return f"{value:,}"


def _style(entry: SiteAccount) -> str:
    return _STYLES.get(entry.state) or _STYLES.get(entry.way, "")


def _styled(text: str, style: str) -> Any:
    shown = plain(text)
    shown.stylize(style)
    return shown


# --- the graphs ------------------------------------------------------------------------------------------------------


def history(graphs: Iterable[GraphAccount]) -> Iterator[str]:
    """What the passes did, graph by graph."""
    for graph in graphs:
        if graph.mode == LOOKING:
            yield "a graph to look at (noble_fx.programs; the modules themselves run):"
        elif graph.mode:
            yield f"the graph of mode {graph.mode!r}:"
        for each in graph.passes:
            yield f"pass {each.name}: {each.rewrites} rewrites"
            yield from (f"  stays × {count}: {reason}" for reason, count in each.skips.items())
        if graph.groups:
            calls = f"{len(graph.groups)} calls of noble_fx::linear_group"
            yield f"grouped: {sum(graph.groups)} sites that read the same input as another, {calls}"
        yield from _operators(graph)


def _operators(graph: GraphAccount) -> Iterator[str]:
    """The operators that the passes brought, took away or left in another number."""
    before = graph.operators_before
    if before is None:
        yield f"operators: {sum(graph.operators.values())}"
        return
    yield f"operators: {sum(before.values())} before, {sum(graph.operators.values())} after"
    counts = [(name, before.get(name, 0), graph.operators.get(name, 0)) for name in before | graph.operators]
    other = [(name, old, new) for name, old, new in counts if old != new]
    yield from (f"  {name}: {old} → {new}" for name, old, new in other[:_OPERATORS])
    if len(other) > _OPERATORS:
        yield f"  and {len(other) - _OPERATORS} more"

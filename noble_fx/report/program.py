"""What a page says of one graph: its lines before and after each pass, and the steps of every pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from noble_fx.explaining.graphs import GraphAccount
from noble_fx.passes.history import Program, Step
from noble_fx.passes.listing import LIMIT, Listing, lines_of
from noble_fx.report.comparison import Run, compared
from noble_fx.report.folding import Folding, Shown

STEPS = 400  # of a history, folded, that are shown
_NODES = 40  # of a folded step, that are named
_TITLES = {
    "": "The graph that runs",
    "train": "The graph that runs in training",
    "eval": "The graph that runs in evaluation",
    "looking": "A graph to look at; the modules themselves run",
    "compiled": "A graph of torch.compile",
}


class View(NamedTuple):
    """One comparison: what a pass did, or with an empty name all of them."""

    name: str
    rewrite: str
    runs: list[Run]


class Steps(NamedTuple):
    """Steps that are equal but for numbers."""

    rule: str
    before: str
    after: str
    skipped: str
    nodes: tuple[str, ...]
    more: int  # nodes that are not named


class ProgramPage(NamedTuple):
    """All that is shown of one graph."""

    title: str
    account: GraphAccount
    views: list[View]
    code: tuple[Shown, ...]  # the graph as it is now, where nothing is known of it as it was before
    without: str  # why nothing is
    steps: list[Steps]
    left_out: int  # steps, folded, that are not shown


def program_page(program: Program, account: GraphAccount) -> ProgramPage:
    """The page's part for one program."""
    listings = getattr(program.history, "listings", ())
    steps = _folded(program.history)
    now: tuple[Shown, ...] = ()
    without = ""
    if not listings:
        graph = program.graph_module.graph
        only = Listing("", lines_of(graph))
        now = tuple(Folding([only]).shown(only))
        many = len(graph.nodes) > LIMIT
        without = f"a graph of more than {LIMIT:,} nodes is not kept as it was before the passes" if many else ""
    return ProgramPage(
        title=_TITLES.get(program.mode, program.mode),
        account=account,
        views=_views(listings, account),
        code=now,
        without=without or ("" if listings else "nothing was noted of it before the passes"),
        steps=steps[:STEPS],
        left_out=max(len(steps) - STEPS, 0),
    )


def _views(listings: Sequence[Listing], account: GraphAccount) -> list[View]:
    if not listings:
        return []
    folding = Folding(listings)
    texts = [list(folding.shown(listing)) for listing in listings]
    rewrites = {each.name: each.rewrite for each in account.passes}
    whole = View("", "", compared(texts[0], texts[-1]))
    pairs = zip(listings[1:], texts, texts[1:], strict=False)
    return [whole, *(View(now.after, rewrites.get(now.after, ""), compared(old, new)) for now, old, new in pairs)]


def _folded(history: Sequence[Step]) -> list[Steps]:
    alike: dict[tuple[str, ...], list[Step]] = {}
    for step in history:
        texts = (step.before, step.after, step.skipped)
        alike.setdefault((step.rule, *(re.sub(r"_?\d+", "", text) for text in texts)), []).append(step)
    return [_one(steps) for steps in alike.values()]


def _one(steps: list[Step]) -> Steps:
    first, nodes = steps[0], tuple(step.node for step in steps)
    return Steps(first.rule, first.before, first.after, first.skipped, nodes[:_NODES], max(len(nodes) - _NODES, 0))

"""The sites of a model as a networkx graph: what holds what, and which sites read one input.

    node  "layers.0"           node="module"  name
    node  "layers.0.q_proj"    node="site"    name role layer in_features out_features rank sigma params state reason …
    edge  module → what is in it              relation="contains"
    edge  first site → the others of a group  relation="shares input"  group  runs

Every attribute is a text, a number or a truth value: `networkx.write_graphml` takes the graph, `read_graphml` gives
it back. GraphML has no empty text and no control characters: what is empty is left out, the others show as escapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from noble_fx.errors import printable
from noble_fx.sites.site import Site

if TYPE_CHECKING:
    import networkx as nx

CONTAINS, SHARES = "contains", "shares input"
SELECTED, LEFT_OUT = "selected", "left out"


def site_graph(
    facts: Mapping[str, Any],
    sites: Iterable[Site],
    acts: Mapping[str, str],
    no_kernels: Mapping[str, str],
    groups: Iterable[tuple[tuple[str, ...], bool]],
) -> nx.DiGraph:
    """The graph of one model, about which `facts` says the rest.

    `acts` and `no_kernels` are by the names of sites; a group is its sites' names and whether it is run, not looked at.
    """
    import networkx as nx

    graph = nx.DiGraph(**_attributes(facts))
    for site in sites:
        _add_site(graph, site, _site_attributes(site, acts, no_kernels))
    for number, (names, runs) in enumerate(groups):
        first, *others = map(identifier, names)
        for other in others:
            if not graph.has_edge(first, other):  # another graph of the model may have the same group
                graph.add_edge(first, other, relation=SHARES, group=number, runs=runs)
    return graph


def identifier(name: str) -> str:
    """The name of a module or parameter as its node: the name itself, or, in its place, what no other name gives."""
    return printable(name.replace("\\", "\\\\"))


def _add_site(graph: nx.DiGraph, site: Site, attributes: dict[str, Any]) -> None:
    name = identifier(site.fqn)
    graph.add_node(name, **attributes)
    while (parent := name.rpartition(".")[0]) and not graph.has_edge(parent, name):
        if parent not in graph:
            graph.add_node(parent, node="module", name=parent)
        graph.add_edge(parent, name, relation=CONTAINS)
        name = parent


def _site_attributes(site: Site, acts: Mapping[str, str], no_kernels: Mapping[str, str]) -> dict[str, Any]:
    return _attributes(
        {
            "node": "site",
            "name": identifier(site.fqn),
            "role": site.role,
            "layer": site.kind,
            "in_features": site.in_features,
            "out_features": site.out_features,
            "rank": site.rank,
            "sigma": acts.get(site.fqn, ""),
            "params": site.params,
            "state": SELECTED if site.selected else LEFT_OUT,
            "reason": site.reason,
            "fused": site.selected and not site.unfused,
            "unfused": site.unfused,
            "no_kernel": no_kernels.get(site.fqn, ""),
            "aliases": ", ".join(site.aliases),
            "experts": site.experts,
        }
    )


def _attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not empty, with texts that XML can hold."""
    shown = {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}
    return {name: value for name, value in shown.items() if value != ""}

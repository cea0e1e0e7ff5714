"""What was rewritten, for a person: the sites with their roles, ranks and reasons, and what it costs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from noble_fx.captures.base import Examples
from noble_fx.diagrams.dot import to_dot
from noble_fx.diagrams.drawing import draw
from noble_fx.diagrams.mermaid import to_mermaid
from noble_fx.diagrams.site_graph import site_graph
from noble_fx.errors import ConfigError, printable
from noble_fx.explaining.account import Account
from noble_fx.explaining.difference import Difference, difference
from noble_fx.explaining.graphs import LOOKING
from noble_fx.explaining.of_file import account_of_file
from noble_fx.explaining.of_model import account_of_model
from noble_fx.explaining.terminal import Report
from noble_fx.report.notebook import fragment
from noble_fx.report.page import write_page
from noble_fx.tables import as_text

if TYPE_CHECKING:
    import networkx as nx

WIDTH = 120


class Explanation(Account):
    """The account of one model, and its views; `str()` is a table, `to_dict()` plain JSON values, `-` a difference."""

    def diff(self, other: Account) -> Difference:
        """What is another in `other`: settings, sites, ranks, σ, reasons, parameters, FLOPs, fused or eager."""
        return difference(self, other)

    def __sub__(self, other: object) -> Difference:
        return self.diff(other) if isinstance(other, Account) else NotImplemented

    def to_networkx(self) -> nx.DiGraph:
        """The sites as a graph with what holds them and which read one input; GraphML can hold it whole."""
        facts = {"model": self.model, "base_params": self.base_params, "branch_params": self.branch_params}
        groups = [(names, graph.mode != LOOKING) for graph in self.graphs for names in graph.shared]
        return site_graph(facts, self.sites, self.acts, self.no_kernels, groups)

    def to_dot(self, repeats: bool = False) -> str:
        """The same as a picture, in the language of Graphviz; equal blocks once, unless `repeats` are to be seen."""
        return to_dot(draw(self.to_networkx(), repeats))

    def to_mermaid(self, repeats: bool = False) -> str:
        """The same as a Mermaid flowchart, for Markdown pages; equal blocks once, unless `repeats` are to be seen."""
        return to_mermaid(draw(self.to_networkx(), repeats))

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write the same as one HTML page, which needs nothing else: layers, graphs before and after, σ, kernels.

        Raises `ConfigError` for a path that is none of an HTML file's or cannot be written, and without jinja2.
        """
        write_page(self, path)

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the layers by block and one block as a picture; nothing where jinja2 is missing."""
        return fragment(self)

    def __str__(self) -> str:
        return as_text(self, WIDTH)

    def __rich__(self) -> Report:
        return Report(self)


def explain(model: nn.Module | str | Path, *args: Any, **kwargs: Any) -> Explanation:
    """What noble_fx found and did in `model`: sites, settings, cost, and the history of every captured graph.

    Of a model without branches, what `transform` would choose with its default settings. For the path of an exported
    ONNX file, or of a folder that `save` made, what it says of itself (`ExportError` or `CheckpointError` where it is
    none). With example inputs of the model, its graph too where there is none without, as `programs` makes it.
    """
    examples = Examples(args, kwargs)
    if examples and isinstance(model, str | Path):
        raise ConfigError(f"example inputs are for a model; {printable(model)} is a file, which nothing is run of")
    account = account_of_file(model) if isinstance(model, str | Path) else account_of_model(model, examples)
    return Explanation(**vars(account))

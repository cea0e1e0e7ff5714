"""Optimizer groups as a list that prints itself as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noble_fx.tables import as_text, table

if TYPE_CHECKING:
    from rich.table import Table

Group = dict[str, Any]


class Groups(list[Group]):
    """What `param_groups` returns: a list of groups like any other, and `print(groups)` shows them, a line each."""

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Table:
        muon = any("use_muon" in group for group in self)
        shown = table()
        for name in ("group", "tensors", "parameters", "lr", "×", "weight decay", *["optimizer"] * muon):
            shown.add_column(name, justify="left" if name in ("group", "optimizer") else "right")
        for group in self:
            shown.add_row(*_cells(group), *["Muon" if group.get("use_muon") else "Adam"] * muon)
        return shown


def _cells(group: Group) -> list[str]:
    decay = group.get("weight_decay")
    return [
        group.get("name", "–"),
        f"{len(group['params']):,}",
        f"{sum(parameter.numel() for parameter in group['params']):,}",
        f"{float(group['lr']):.3g}" if "lr" in group else "–",
        f"{group['lr_scale']:.3g}",
        "–" if decay is None else f"{decay:.3g}",
    ]

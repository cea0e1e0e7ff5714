"""The numbers of `stats` as a dictionary that prints itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noble_fx.tables import as_text, group, number, table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_COLUMNS = {  # of a site
    "share": "share",
    "moved ω": "moved/frequency",
    "moved φ": "moved/phase",
    "|gradient|": "grad/all",
    "|parameters|": "norm/all",
}


class Stats(dict[str, float]):
    """What `stats` returns: a flat dictionary of numbers, and `print(stats)` shows them by site and by role."""

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Group:
        return group(self._sites(), "", self._roles())

    def _sites(self) -> Table:
        sites = dict.fromkeys(key.split("/")[1] for key in self if not key.startswith("noble/lr/"))
        titles = [title for title, name in _COLUMNS.items() if any(key.endswith(f"/{name}") for key in self)]
        shown = _table("site", titles)
        for site in sites:
            shown.add_row(site, *(number(self.get(f"noble/{site}/{_COLUMNS[title]}")) for title in titles))
        return shown

    def _roles(self) -> Table:
        names = [key.split("/", 3) for key in self]
        roles = dict.fromkeys(name[-1] for name in names if name[:2] == ["noble", "lr"] or "norm" in name[2:3])
        columns = {"|gradient|": "total/grad", "|parameters|": "total/norm", "lr": "lr"}
        titles = [title for title, name in columns.items() if any(key.startswith(f"noble/{name}/") for key in self)]
        shown = _table("role", titles)
        for role in roles:
            if role != "all":
                shown.add_row(role, *(number(self.get(f"noble/{columns[title]}/{role}")) for title in titles))
        return shown


def _table(first: str, titles: list[str]) -> Table:
    shown = table(first)
    for title in titles:
        shown.add_column(title, justify="right")
    return shown

"""What is another in a second account: two settings, two checkpoints, two models or files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noble_fx.explaining.account import LEFT_OUT, Account, SiteAccount
from noble_fx.sites.patterns import grouped
from noble_fx.tables import NOTHING, as_text, group, plain

if TYPE_CHECKING:
    from rich.console import Group

WIDTH = 120
Pair = tuple[Any, Any]  # before, after


@dataclass(frozen=True)
class SiteDifference:
    """One linear map that is not the same in both: what is another, as (before, after)."""

    fqn: str
    what: str  # "added" or "removed" a branch, "changed", "new" or "gone": a map that one of them does not list
    fields: dict[str, Pair]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"fqn": self.fqn, "what": self.what, "fields": _lists(self.fields)}


@dataclass(frozen=True)
class Difference:
    """From one account to another; `str()` tells it, `to_dict()` is plain JSON values; false where there is none."""

    before: str  # the models' names
    after: str
    settings: dict[str, Pair]
    totals: dict[str, Pair]
    sites: tuple[SiteDifference, ...]

    def __bool__(self) -> bool:
        return bool(self.settings or self.totals or self.sites)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "before": self.before,
            "after": self.after,
            "settings": _lists(self.settings),
            "totals": _lists(self.totals),
            "sites": [site.to_dict() for site in self.sites],
        }

    def __str__(self) -> str:
        return as_text(self, WIDTH)

    def __rich__(self) -> Group:
        return group(*map(plain, self._lines()))

    def _lines(self) -> Iterator[str]:
        yield f"{self.before} → {self.after}" if self else f"{self.before} → {self.after}: no difference"
        yield from (f"{name}: {_show(pair)}" for name, pair in (self.settings | self.totals).items())
        for name, equal in grouped(self.sites, lambda site: site.fqn, lambda site: (site.what, str(site.fields))):
            told = "; ".join(f"{field} {_show(pair)}" for field, pair in equal[0].fields.items())
            yield f"{equal[0].what} {name} ×{len(equal)}{': ' if told else ''}{told}"


def difference(before: Account, after: Account) -> Difference:
    """What is another in `after`."""
    old, new = ({entry.site.fqn: entry for entry in account.entries} for account in (before, after))
    names = dict.fromkeys([*old, *new])
    listed = before.complete and after.complete
    sites = [_site(name, old.get(name), new.get(name), listed) for name in names]
    return Difference(
        before=before.model,
        after=after.model,
        settings=_other(_settings(before), _settings(after)),
        totals=_other(_totals(before, listed), _totals(after, listed)),
        sites=tuple(site for site in sites if site is not None),
    )


def _settings(account: Account) -> dict[str, Any]:
    told = {name: value for name, value in account.settings.items() if value}
    return {**told, **account.config}


def _totals(account: Account, listed: bool) -> dict[str, Any]:
    ways = [entry.way for entry in account.chosen]
    return {
        "sites": len(account.chosen),
        "fused": ways.count("fused"),
        "eager": ways.count("eager"),
        "parameters": account.base_params,
        "parameters in branches": account.planned_params,
        "FLOPs a row in branches": account.branch_flops,
        **({"FLOPs a row": account.base_flops} if listed else {}),
    }


def _other(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Pair]:
    """What is not the same in both, as (before, after)."""
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _site(name: str, old: SiteAccount | None, new: SiteAccount | None, listed: bool) -> SiteDifference | None:
    """How a map differs; one that a file does not list, for it lists branches alone, was left out for all we know."""
    had, has = (entry is not None and entry.state != LEFT_OUT for entry in (old, new))
    if not (had or has) and not listed:
        return None
    fields = _other(_fields(old), _fields(new))
    if old is None or new is None:
        lacking = ("removed" if had else "added") if not listed else ("gone" if new is None else "new")
        return SiteDifference(name, lacking, fields)
    what = "changed" if had == has else "added" if has else "removed"
    return SiteDifference(name, what, fields) if fields else None


def _fields(entry: SiteAccount | None) -> dict[str, Any]:
    """What is compared of a map, without what is empty."""
    if entry is None:
        return {}
    site = entry.site
    fields = {
        "K": site.in_features,
        "N": site.out_features,
        "role": site.role,
        "kind": site.kind,
        "rank": site.rank,
        "σ": entry.act,
        "way": entry.way,
        "eager because": site.unfused,
        "no kernels because": entry.no_kernel,
        "reason": site.reason,
        "params": site.params,
        "FLOPs": entry.branch_flops,
    }
    return {name: value for name, value in fields.items() if value not in ("", 0)}


def _show(pair: Pair) -> str:
    return " → ".join(_value(value) for value in pair)


def _value(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _lists(pairs: Mapping[str, Pair]) -> dict[str, list[Any]]:
    return {name: list(pair) for name, pair in pairs.items()}

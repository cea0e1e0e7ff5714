"""The first screen of a page: how many layers carry a branch, which do not and why, the cost, and what a GPU runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from noble_fx.explaining.account import EAGER, Account
from noble_fx.explaining.kernels import UNMEASURED
from noble_fx.sites.patterns import grouped


class Fact(NamedTuple):
    """A number with what it is and what it is made of."""

    title: str
    value: str
    note: str


class Reason(NamedTuple):
    """Why some sites are as they are."""

    text: str
    sites: int
    names: list[str]  # equal names of repeated blocks as one, with how many they are


def lead(account: Account) -> str:
    """The page in a sentence."""
    count, every = len(account.chosen), len(account.entries)
    if not account.complete:
        return f"{_count(count, 'linear map')} with a branch; the others are not listed there."
    if not account.transformed:
        would = f"transform would give a branch to {count} of {_count(every, 'linear map')}"
        return f"Not transformed. By its default settings, {would}."
    return f"{count} of {_count(every, 'linear map')} {'carries' if every == 1 else 'carry'} a branch."


def facts(account: Account) -> list[Fact]:
    """What it costs and how it runs."""
    carry = Fact("Linear maps with a branch", f"{len(account.chosen):,}", f"of {len(account.entries):,}")
    if not account.complete:
        carry = carry._replace(note="others are not listed")
    elif not account.transformed:
        carry = carry._replace(title="Linear maps that would get a branch")
    found = [carry, _added("Parameters", account.base_params, account.planned_params, "B")]
    if account.branch_flops is not None:
        found.append(_added("FLOPs a token", account.base_flops, account.branch_flops, "G"))
    if not (account.transformed and account.runs and account.chosen):
        return found
    fused = sum(entry.way != EAGER for entry in account.chosen)
    generated = fused - len(account.no_kernels)
    return [
        *found,
        Fact(
            "Fused into one operator",
            f"{fused:,}",
            f"of {len(account.chosen):,}; {len(account.chosen) - fused:,} eager",
        ),
        Fact("Generated GPU kernels", f"{generated:,}", f"of {fused:,} fused"),
    ]


def left_out(account: Account) -> list[Reason]:
    """Linear maps without a branch, by the reason."""
    return _reasons(account.left_out)


def on_a_gpu(account: Account) -> list[Reason]:
    """What runs there with generated kernels and what does not."""
    if not (account.transformed and account.runs):
        return []
    by_reason: dict[str, list[str]] = {}
    for entry in account.chosen:
        if entry.way == EAGER:
            reason = f"Eager branch, PyTorch operators: {entry.site.unfused}"
        elif entry.no_kernel:
            reason = f"Fused, by PyTorch operators: {entry.no_kernel}"
        else:
            reason = "Fused, by generated kernels"
        by_reason.setdefault(reason, []).append(entry.site.fqn)
    return _reasons(by_reason)


def ways(account: Account) -> str:
    """What is measured before one of the ways is taken; "" where there are no kernels."""
    found = dict.fromkeys(way for kernel in account.kernels for way in kernel.forward)
    return f"Ways to run a layer: {', '.join(found)}. The fastest one is {UNMEASURED}." if found else ""


def settings(account: Account) -> dict[str, str]:
    """What the model was transformed with."""
    told = {
        name: value for name, value in account.settings.items() if value and name != "graph"
    }  # said with the graphs
    return told | {name: _plain(value) for name, value in account.config.items() if name not in told and _says(value)}


def _says(value: Any) -> bool:
    return value is not None and value != {} and value != []


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


def _added(title: str, base: int, added: int, billions: str) -> Fact:
    share = f"+{added / base:.1%}" if base else f"+{added:,}"
    return Fact(title, share, f"{_short(base, billions)} + {_short(added, billions)}")


def _short(number: int, billions: str) -> str:
    """Whole as far as it can be read at a glance, else three or four digits of it."""
    for size, unit in ((1e12, "T"), (1e9, billions), (1e6, "M")):
        if number >= 10 * size or (number >= size and size > 1e6):
            return f"{number / size:.4g} {unit}"
    return f"{number:,}"


def _reasons(by_reason: Mapping[str, Iterable[str]]) -> list[Reason]:
    return [Reason(reason, len(names := list(all_names)), _folded(names)) for reason, all_names in by_reason.items()]


def _folded(names: Iterable[str]) -> list[str]:
    groups = grouped(names, lambda name: name, lambda name: None)
    return [f"{shared} ×{len(equal)}" if len(equal) > 1 else shared for shared, equal in groups]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"

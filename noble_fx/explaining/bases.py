"""What is said of weights that have another form: which, how large, how exact, and what not to expect of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from noble_fx.sites.site import Site

EXPECT = (
    "what not to expect: at equal size 4-bit quantization usually loses less, where its kernels are at hand; the two "
    "combine"
)


def kind_of(site: Site) -> str:
    """The class of the layer, and the form of its W where that is another one."""
    guided = "guided " * (site.base_guide > 0)
    return f"{site.kind}, {guided}{site.base} r {site.base_rank}" if site.base else site.kind


def told_bases(sites: Iterable[Site]) -> Iterator[str]:
    """A line for each kind of form: how many layers, parameters and FLOPs, and what they would be of dense ones."""
    kinds: dict[str, list[Site]] = {}
    for site in sites:
        if site.base:
            kinds.setdefault(site.base, []).append(site)
    for kind, of_kind in kinds.items():
        dense = sum(site.in_features * site.out_features for site in of_kind)
        params, flops = sum(site.base_params for site in of_kind), sum(site.base_row_flops for site in of_kind)
        yield (
            f"W is {kind} at {len(of_kind)} layers: {_share(params, dense)} parameters of {dense:,}, "
            f"{_share(flops, 2 * dense)} FLOPs of {2 * dense:,}{_guided(of_kind)}"
        )
    if any(site.base_error is not None for of_kind in kinds.values() for site in of_kind):
        yield EXPECT


def _guided(sites: list[Site]) -> str:
    until = sorted({site.base_guide for site in sites if site.base_guide})
    return f", each guided by its W until {' or '.join(f'{share:.0%}' for share in until)} of training" if until else ""


def errors_of(sites: Sequence[Site]) -> str:
    """How far equal layers are off, "" where none was fitted to anything."""
    errors = [site.base_error for site in sites if site.base_error is not None]
    if not errors:
        return ""
    low, high = f"{min(errors):.2%}", f"{max(errors):.2%}"
    method = f" by {sites[0].base_method}" if sites[0].base_method else ""
    return f"; off by {low if low == high else f'{low} to {high}'}{method}"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.0%})"

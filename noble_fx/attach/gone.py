"""Branches that another tool took along with their layers: it put new layers into the model, over weights of their own.

`transform` notes on the model what it chose, and every branch knows the choice that it is a part of. A chosen layer in
whose place there is another one today, without a branch, was replaced. What is there no more (a pruned block, a stage
of a pipeline, a part of the model) is missed by nobody, and a layer that was there at the time is none that came since:
its branch was taken out by a verb.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.branches.base import Branch
from noble_fx.layers.base import plain_class
from noble_fx.layers.registry import describe
from noble_fx.sites.site import Choice, Site
from noble_fx.wrappers import own_name

_CHOICE = "_noble_choice"  # an attribute of the module that was transformed: copied, pickled and wrapped with it
_SHOWN = 3


def made_choice(model: nn.Module, sites: Iterable[Site]) -> Choice:
    """What was chosen of `model`, with the layers that it has today."""
    listed, places = tuple(sites), dict(model.named_modules(remove_duplicate=False))
    layers = (places.get(_holder(site)) for site in listed)
    return Choice(listed, tuple(weakref.ref(layer) for layer in layers if layer is not None))


def note_choice(model: nn.Module, choice: Choice) -> None:
    """Remember on `model` which of its sites have branches."""
    vars(model)[_CHOICE] = choice


def forget_choice(model: nn.Module) -> bool:
    """No branches are in `model` any more; returns whether some were ever noted."""
    noted = [module for module in model.modules() if _CHOICE in vars(module)]
    for module in noted:
        del vars(module)[_CHOICE]
    return bool(noted)


def sites_gone(model: nn.Module) -> dict[str, nn.Module]:
    """The chosen sites whose branch is gone, by today's own name, each with what is in its place."""
    places: dict[str, nn.Module] = {}
    for fqn, module in model.named_modules(remove_duplicate=False):
        places.setdefault(own_name(fqn, model), module)
    gone: dict[str, nn.Module] = {}
    for choice, before, after, there in _choices(model):
        known = {id(layer()) for layer in choice.layers}
        for site in choice.sites:
            then = own_name(site.fqn)
            if site.selected and then not in there and then.startswith(before):
                place = places.get(after + own_name(_holder(site)).removeprefix(before))
                if place is not None and id(place) not in known and _has_no_branch(place):
                    gone[after + then.removeprefix(before)] = place
    return gone


def told_gone(model: nn.Module) -> str:
    """In words which branches are gone, what is in their place, and the remedy; "" where none is."""
    gone = sites_gone(model)
    if not gone:
        return ""
    listed = [f"{name!r} is a {plain_class(place).__qualname__} now" for name, place in gone.items()]
    more = [f"and {len(gone) - _SHOWN} more"] if len(gone) > _SHOWN else []
    left = sum(branch.choice is not None for branch in named_branches(model).values())
    verb = "remove_branches(model, names)" if left else "remove(model)"
    return (
        f"{len(gone)} of {len(gone) + left} branches that noble_fx.transform made are gone, since their layers were "
        f"replaced by new ones: {', '.join([*listed[:_SHOWN], *more])}. Convert the model first and transform it "
        "afterwards, or keep layers with a branch out of that conversion; if it is meant so, "
        f"noble_fx.{verb} takes note of it"
    )


def _holder(site: Site) -> str:
    """The name of the layer of a site, or of the module whose parameter it is."""
    return site.weight.rpartition(".")[0] if site.weight else site.fqn


def _choices(model: nn.Module) -> list[tuple[Choice, str, str, set[str]]]:
    """Each choice that `model` or a branch in it knows, names' prefix then and now, and who has a branch still."""
    found: dict[tuple[int, str, str], tuple[Choice, str, str, set[str]]] = {}

    def names(choice: Any, before: str, after: str) -> set[str]:
        return found.setdefault((id(choice), before, after), (choice, before, after, set()))[3]

    for fqn, module in model.named_modules():
        if isinstance(choice := vars(module).get(_CHOICE), Choice):
            own = own_name(fqn, model)
            names(choice, "", f"{own}." if own else "")
    for path, branch in named_branches(model).items():
        if isinstance(branch.choice, Choice) and branch.site is not None:
            then, today = own_name(branch.site.fqn).split("."), own_name(path, model).split(".")
            today = today[:-1] if branch.site.experts else today
            while then and today and then[-1] == today[-1]:
                then, today = then[:-1], today[:-1]
            names(branch.choice, ".".join([*then, ""]), ".".join([*today, ""])).add(own_name(branch.site.fqn))
    return list(found.values())


def _has_no_branch(place: nn.Module) -> bool:
    """Whether this is a layer with weights, and has no branch in it, as a wrapper around a layer with one has."""
    if any(isinstance(module, Branch) for module in place.modules()):
        return False
    return describe(place) is not None or next(place.parameters(), next(place.buffers(), None)) is not None

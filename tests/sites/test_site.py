"""A site as data."""

import copy
import dataclasses
import json

from noble_fx.sites.site import Choice, Site

SITE = Site("a.w", "other", "mm", 8, 6, 2, True, "named", 28, ("b.w",), weight="a.w", layout="[K, N]", action="add")


def test_a_site_is_plain_json_and_back():
    values = json.loads(json.dumps(SITE.to_dict()))
    assert Site(**{**values, "aliases": tuple(values["aliases"])}) == SITE


def test_a_file_of_an_older_version_has_fewer_fields():
    old = {f.name: getattr(SITE, f.name) for f in dataclasses.fields(Site) if f.name != "action"}
    assert Site(**old) == dataclasses.replace(SITE, action="")


def test_names_in_a_larger_and_in_a_smaller_model():
    wrapped = SITE.renamed("", "module.")
    assert (wrapped.fqn, wrapped.weight, wrapped.aliases) == ("module.a.w", "module.a.w", ("module.b.w",))
    assert wrapped.renamed("module.", "") == SITE
    layer = dataclasses.replace(SITE, weight="")
    assert layer.renamed("", "module.").weight == ""


def test_a_choice_is_shared_by_copies():
    choice = Choice((SITE,))
    assert copy.deepcopy([choice, choice]) == [choice, choice]
    assert copy.deepcopy(choice) is choice


def test_a_pattern_is_found_in_any_of_its_names():
    site = dataclasses.replace(SITE, fqn="blocks.0.fc1", aliases=("shared.fc1",))
    assert site.matches("^shared")
    assert site.matches(r"\.0\.")
    assert not site.matches("fc1x")

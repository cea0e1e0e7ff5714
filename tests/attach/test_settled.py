import re

import noble_fx
from noble_fx.attach.settled import exact_settings, settle
from noble_fx.transform import named_branches
from tests.models import transformed


def test_settings_name_sites_and_ranks():
    model = transformed(rank_pattern={"fc1": 6, "blocks.1.fc2": 2})
    sites = [site for site in noble_fx.sites(model) if site.selected]
    settings = exact_settings(model, sites)
    assert settings["rank"] == 4
    assert settings["exclude"] is None
    assert settings["select"] == [site.fqn for site in sites]
    for site in sites:
        matching = [rank for pattern, rank in settings["rank_pattern"].items() if re.search(pattern, site.fqn)]
        assert matching == ([site.rank] if site.rank != 4 else [])


def test_branches_keep_what_else_they_were_made_with():
    model = transformed(exclude="fc2", preset="reference")
    settle(model, noble_fx.sites(model))
    for name, branch in named_branches(model).items():
        assert branch.config.preset == "reference"
        assert branch.config.exclude is None
        assert branch.site.fqn == name
        assert branch.site.reason == "in a repeated block"
    assert [site.reason for site in noble_fx.sites(model) if site.fqn == "blocks.0.fc2"] == ["matches exclude='fc2'"]

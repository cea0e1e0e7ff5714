"""The account of a saved folder; that of an ONNX file is tried in tests/sites/test_from_file.py."""

import json

import pytest

import noble_fx
from noble_fx import CheckpointError, ExportError, NobleConfig
from noble_fx.checkpoints.config_file import CONFIG
from noble_fx.explaining.of_file import account_of_file
from tests.models import transformed


@pytest.fixture
def saved(tmp_path):
    return noble_fx.save(transformed("modules", select="ffn"), tmp_path / "saved")


def changed(folder, **entries):
    described = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**described, **entries}))
    return folder


def test_a_folder_tells_its_branches(saved):
    account, live = account_of_file(saved), noble_fx.explain(transformed("modules", select="ffn"))
    assert account.chosen == tuple(
        type(entry)(entry.site, entry.state, entry.act, entry.base_flops, entry.branch_flops) for entry in live.chosen
    )
    assert (account.base_params, account.branch_params) == (live.base_params, live.branch_params)
    assert account.config == live.config
    assert not account.complete
    assert noble_fx.explain(str(saved)) == noble_fx.explain(saved)
    assert "4 linear maps carry a branch; others are not listed there" in " ".join(str(noble_fx.explain(saved)).split())


def test_what_is_another_in_a_folder(saved):
    assert not (noble_fx.explain(saved) - noble_fx.explain(saved))
    other = noble_fx.explain(saved) - noble_fx.explain(transformed("modules", select="ffn"))
    assert (other.sites, other.totals) == ((), {})
    added = {each.fqn: each.what for each in (noble_fx.explain(saved) - noble_fx.explain(transformed("modules"))).sites}
    assert added["blocks.0.q_proj"] == "added"


def test_a_sigma_that_this_process_does_not_know(saved):
    folder = changed(saved, config={**NobleConfig(rank=4).to_dict(), "act": "a_sigma_of_another_process"})
    account = account_of_file(folder)
    assert account.branch_flops is None
    assert set(account.acts.values()) == {"a_sigma_of_another_process"}
    assert "those in branches are not known here" in " ".join(str(noble_fx.explain(folder)).split())


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        ("x", "'sites' is 'x', which is no list"),
        ([{"fqn": 3}], "'fqn' of site 3 is 3, which is no str"),
        ([{"fqn": "a"}], "'role' of site 'a' is missing"),
    ],
)
def test_a_damaged_list_of_sites(saved, sites, reason):
    with pytest.raises(CheckpointError, match=f"is not a config of noble_fx.save: {reason}"):
        account_of_file(changed(saved, sites=sites))


def test_a_folder_of_somebody_else(tmp_path):
    with pytest.raises(ExportError, match=r"is a folder without a noble_config.json; .* and noble_fx.save a folder"):
        noble_fx.explain(tmp_path)

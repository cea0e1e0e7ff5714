"""`noble-fx sites`; more in tests/test_cli.py."""

import json

import noble_fx
from noble_fx import cli
from tests.models import transformed


def test_of_a_folder(tmp_path, capsys):
    saved = noble_fx.save(transformed("modules", select="ffn"), tmp_path / "saved")
    assert cli.main(["sites", str(saved), "--json"]) == 0
    assert {site["rank"] for site in json.loads(capsys.readouterr().out)} == {4}


def test_it_tells_what_a_branch_would_cost(capsys):
    assert cli.main(["sites", "tests.models:tiny", "--rank", "4"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("blocks.*.fc1"))
    assert "+40.6%" in row

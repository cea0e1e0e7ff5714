"""`noble-fx kernels` as JSON; more in tests/test_cli.py."""

import json

from noble_fx import cli


def test_sources_as_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    sizes = ["--in", "64", "--out", "48", "--rank", "8", "--kernel", "linear_up_forward"]
    assert cli.main(["kernels", *sizes, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "def linear_up_forward(" in answer["sources"]["linear_up_forward"]
    assert answer["resources"] == {}

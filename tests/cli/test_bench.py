"""`noble-fx bench`; what is timed is in tests/test_bench.py."""

import json

from noble_fx import cli

SIZES = ["--in", "16", "--out", "12", "--rank", "4", "--rows", "3", "--rounds", "4", "--device", "cpu"]


def test_a_table_and_json(capsys):
    assert cli.main(["bench", *SIZES]) == 0
    assert "by hand" in capsys.readouterr().out
    assert cli.main(["bench", *SIZES, "--dtype", "bf16", "--no-bias", "--json"]) == 0
    layer = json.loads(capsys.readouterr().out)["layer"]
    assert (layer["dtype"], layer["bias"], layer["out"]) == ("bfloat16", False, 12)


def test_a_device_that_is_not_there(capsys):
    assert cli.main(["bench", *SIZES[:-1], "nowhere"]) == 2
    assert "device='nowhere' cannot be used here" in " ".join(capsys.readouterr().err.split())

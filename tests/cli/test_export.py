"""`noble-fx export` where it has nothing to run a model on; more in tests/test_cli.py."""

from noble_fx import cli


def test_a_model_that_gets_no_inputs_by_itself(capsys, tmp_path):
    assert cli.main(["export", "tests.models:tiny", "--rank", "4", "--out", str(tmp_path / "m.onnx")]) == 2
    assert "export needs an example input" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""`noble-fx demo` hands on what was given; the demo is tried in tests/demo/test_run.py."""

from noble_fx import cli
from noble_fx.demo import run


def test_only_what_was_given_is_handed_on(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(run, "run_demo", lambda **values: given.update(values))
    assert cli.main(["demo", "--steps", "3", "--out", str(tmp_path)]) == 0
    assert given == {"steps": 3, "folder": tmp_path}

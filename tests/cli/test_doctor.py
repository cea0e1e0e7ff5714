"""`noble-fx doctor`; what it looks at is in tests/test_doctor.py."""

import json
from types import SimpleNamespace

import pytest

from noble_fx import cli
from noble_fx.cli import doctor


@pytest.mark.parametrize("agrees", [True, False])
def test_status_1_where_something_is_wrong(agrees, monkeypatch, capsys):
    found = SimpleNamespace(agrees=agrees, to_dict=lambda: {"agrees": agrees})
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert cli.main(["doctor", "--json"]) == (0 if agrees else 1)
    assert json.loads(capsys.readouterr().out) == {"agrees": agrees}
    assert cli.main(["doctor"]) == (0 if agrees else 1)

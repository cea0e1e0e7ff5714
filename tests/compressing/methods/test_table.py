"""Methods by name."""

import pytest

from noble_fx.compressing.methods.saes import Saes
from noble_fx.compressing.methods.table import METHODS, method_of
from noble_fx.errors import ConfigError


@pytest.mark.parametrize("name", METHODS)
def test_by_name(name):
    said, method = method_of(name)
    assert said == name
    assert type(method) is METHODS[name]


def test_one_with_settings_of_its_own():
    given = Saes(0.3)
    assert method_of(given) == ("saes", given)


@pytest.mark.parametrize("wrong", ["activation", "", 3, None])
def test_unknown(wrong):
    with pytest.raises(ConfigError, match="use one of activations, svd"):
        method_of(wrong)

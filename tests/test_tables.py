"""Tables as text."""

import pytest
from rich.table import Table

from noble_fx.tables import as_text, number


def test_no_colours_and_no_blanks_at_the_end():
    table = Table("site", "share", box=None, pad_edge=False)
    table.add_row("[a]", "1")
    assert as_text(table) == "site  share\n      1"
    assert as_text("x").endswith("x")


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.123456, "0.123"), (1e-9, "1e-09"), (float("nan"), "nan")])
def test_three_digits(value, text):
    assert number(value) == text

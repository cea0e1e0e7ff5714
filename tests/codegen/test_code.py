"""Code and masks: what a text is was said when it was made, and a mask joins itself."""

import math

import pytest

from noble_fx.codegen.code import LIVE, Code, Kind, Mask


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (-0.5, "-0.5"), (1e-30, "1e-30"), (math.inf, 'float("inf")'), (-math.inf, 'float("-inf")')],
)
def test_a_number_keeps_its_value(value, text):
    code = Code.number(value)
    assert (str(code), code.value, code.is_number, code.is_name) == (text, value, True, False)


def test_not_a_number_is_a_number_of_the_source():
    assert str(Code.number(math.nan)) == 'float("nan")'
    assert Code.number(math.nan).is_number


def test_a_name_is_no_number_whatever_it_is_called():
    for text in ("inf", "nan", "h_c0"):
        assert Code.name(text).is_name
        assert not Code.name(text).is_number


def test_only_an_expression_needs_parentheses():
    assert Code("a + b").grouped == "(a + b)"
    assert Code("a + b").kind is Kind.EXPRESSION
    assert [code.grouped for code in (Code.name("a"), Code.number(-2), Code.call("f(a + b)"))] == [
        "a",
        "-2",
        "f(a + b)",
    ]


def test_a_mask_joins_its_conditions():
    padded = Mask.where("channel < 12")
    assert str(padded) == "channel < 12"
    assert str(LIVE & padded) == "live[:, None] & (channel < 12)"
    assert str(padded & padded) == "(channel < 12) & (channel < 12)"
    assert [bool(mask) for mask in (Mask(), LIVE, Mask() & LIVE, Mask() & Mask())] == [False, True, True, False]
    assert [mask.joined for mask in (Mask(), padded, Mask() & padded, LIVE & padded)] == [False, False, False, True]


def test_a_joined_mask_gets_a_line_of_its_own():
    lines: list[str] = []
    assert Mask().argument(lines.append) == ""
    assert Mask.where("a < 3").argument(lines.append, "0.0") == ", mask=a < 3, other=0.0"
    assert lines == []
    assert (LIVE & Mask.where("a < 3")).argument(lines.append) == ", mask=inside"
    assert lines == ["inside = live[:, None] & (a < 3)"]


@pytest.mark.parametrize(
    ("first", "end", "text"), [(0, 8, ""), (0, 3, "i < 3"), (3, 8, "i >= 3"), (3, 5, "(i >= 3) & (i < 5)")]
)
def test_between_says_no_more_than_is_needed(first, end, text):
    assert str(Mask.between("i", first, end, 8)) == text

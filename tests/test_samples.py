"""A sample leaves nothing out that no other case of it has."""

import pytest

from tests.samples import crossed, long, sampled


def in_suite(cases):
    return [case.values for case in cases if not case.marks]


@pytest.mark.parametrize(("first", "second"), [("abc", "xy"), ("ab", "wxyz"), ("abcd", "xy"), ("ab", "xy"), ("a", "x")])
def test_of_pairs_each_value_stays(first, second):
    cases = crossed(first, second)
    assert [case.values for case in cases] == [(one, other) for one in first for other in second]
    assert len(in_suite(cases)) == max(len(first), len(second))
    assert {one for one, _ in in_suite(cases)} == set(first)
    assert {other for _, other in in_suite(cases)} == set(second)


def test_what_is_not_named_is_long():
    cases = [*sampled(["a", "b", "c"], {"b"}), long("d")]
    assert in_suite(cases) == [("b",)]
    assert [case.id for case in cases] == ["a", "b", "c", None]
    with pytest.raises(ValueError, match="no case is called"):
        sampled(["a"], {"x"})

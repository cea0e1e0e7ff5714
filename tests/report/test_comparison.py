import time

from noble_fx.report import comparison
from noble_fx.report.comparison import compared
from noble_fx.report.folding import Shown


def lines(*texts: str) -> list[Shown]:
    return [Shown(text, text.partition(" = ")[0]) for text in texts]


def test_a_node_stands_beside_itself_whatever_it_reads():
    before, after = lines("a = f(x)", "b = g(a)", "c = h(b)"), lines("z = f2(x)", "z1 = z[0]", "b = g(z1)", "c = h(b)")
    (run,) = compared(before, after)
    assert [(row.before.text, row.after.text, row.changed) for row in run.rows] == [
        ("a = f(x)", "z = f2(x)", True),
        ("", "z1 = z[0]", True),
        ("b = g(a)", "b = g(z1)", True),
        ("c = h(b)", "c = h(b)", False),
    ]


def test_equal_lines_far_from_a_change_are_out_of_sight():
    before = lines(*(f"n{i} = f()" for i in range(20)))
    after = [*before[:10], Shown("n10 = g()", "n10"), *before[11:]]
    assert [(len(run.rows), run.hidden) for run in compared(before, after)] == [(7, True), (7, False), (6, True)]


def test_equal_texts_are_shown_whole():
    same = lines(*(f"n{i} = f()" for i in range(20)))
    assert [(len(run.rows), run.hidden) for run in compared(same, same)] == [(20, False)]
    assert [(len(run.rows), run.hidden) for run in compared([], [])] == [(0, False)]


def test_a_long_text_is_cut_off_with_a_word(monkeypatch):
    monkeypatch.setattr(comparison, "LINES", 10)
    many = lines(*(f"n{i} = f()" for i in range(15)))
    (run,) = compared(many, many)
    assert [row.after.text for row in run.rows][-1] == "# … and 5 lines that are left out here"


def test_texts_without_end_take_no_time():
    many = lines(*(f"n{i} = f()" for i in range(100_000)))
    start = time.perf_counter()
    assert sum(len(run.rows) for run in compared(many, many[::-1])) > 0
    assert time.perf_counter() - start < 10

"""Numbers by key print themselves as two tables."""

import noble_fx
from noble_fx.training.looking.stats_table import Stats
from tests.models import transformed

NUMBERS = {
    "noble/a.b/share": 0.25,
    "noble/a.b/moved/frequency": 0.001,
    "noble/a.b/grad/down": 3.0,
    "noble/a.b/grad/all": 5.0,
    "noble/total/grad/all": 5.0,
    "noble/total/grad/down": 3.0,
    "noble/total/norm/down": 7.0,
    "noble/total/norm/base": 8.0,
    "noble/lr/base": 0.01,
}


def test_a_line_for_each_site_and_each_role():
    lines = [line.split() for line in str(Stats(NUMBERS)).splitlines()]
    assert lines == [
        ["site", "share", "moved", "ω", "|gradient|"],
        ["a.b", "0.25", "0.001", "5"],
        ["total", "–", "–", "5"],
        [],
        ["role", "|gradient|", "|parameters|", "lr"],
        ["down", "3", "7", "–"],
        ["base", "–", "8", "0.01"],
    ]


def test_what_nobody_has_is_no_column():
    first = str(noble_fx.stats(transformed("modules"), per_site=False)).splitlines()[0]
    assert first.split() == ["site", "moved", "ω", "moved", "φ", "|parameters|"]


def test_it_stays_a_dictionary():
    assert Stats(NUMBERS) == NUMBERS
    assert str(Stats()).split() == ["site", "role"]

"""Equal maps of repeated blocks share a name."""

from noble_fx.sites.patterns import grouped, pattern, ranges


def test_numbers_are_stars():
    assert pattern("layers.3.mlp.2.up1") == "layers.*.mlp.*.up1"
    assert pattern("") == ""


def test_numbers_in_a_row_are_a_range():
    assert ", ".join(ranges(["0", "1", "2", "5", "7", "8"])) == "0–2, 5, 7–8"


def names(*items: tuple[str, int]) -> dict[str, int]:
    return {name: len(equal) for name, equal in grouped(items, lambda item: item[0], lambda item: item[1])}


def test_all_of_a_pattern_are_one():
    assert names(*((f"layers.{i}.up", 4) for i in range(32)), ("head", 4)) == {"layers.*.up": 32, "head": 1}


def test_those_of_another_key_are_told_apart_by_their_numbers():
    items = [(f"layers.{i}.up", 8 if i == 3 else 4) for i in range(6)]
    assert names(*items) == {"layers.[0–2,4–5].up": 5, "layers.3.up": 1}


def test_numbers_in_two_places():
    items = [(f"layers.{i}.experts.{j}", i // 2) for i in range(4) for j in range(2)]
    assert names(*items) == {"layers.[0–1].experts.[0–1]": 4, "layers.[2–3].experts.[0–1]": 4}

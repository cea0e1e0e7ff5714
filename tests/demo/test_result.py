"""What the demo shows of its figures."""

import io
import json

from rich.console import Console

from noble_fx.demo.result import Run, as_json, comparison

PLAIN = Run([5, 10], [3.0, 2.0], [3.0, 2.0], 0.1, parameters=100)
SETTINGS = {"lr": 8e-3, "noble_lr": 4e-3}


def table_of(noble: Run, reached: float | None) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=120).print(comparison(PLAIN, noble, reached, SETTINGS))
    return out.getvalue().splitlines()


def line_of(table: list[str], name: str) -> list[str]:
    return [cell.strip() for cell in next(line for line in table if name in line).strip("│").split("│")][1:]


def test_never_reaching_is_said() -> None:
    table = table_of(Run([5, 10], [3.0, 2.5], [3.0, 2.5], 0.2, parameters=110), None)
    assert line_of(table, "steps to loss") == ["10", "–", "not reached in 10 steps"]
    assert line_of(table, "parameters") == ["100", "110", "+10.0%"]


def test_steps_and_seconds_to_the_plain_loss() -> None:
    table = table_of(Run([5, 10], [2.0, 1.5], [2.0, 1.5], 0.3, parameters=110), 5.0)
    assert line_of(table, "steps to loss") == ["10", "5", "2.00× fewer steps"]
    assert line_of(table, "training seconds") == ["1", "2", "+50%"]  # half the steps at three times the seconds
    assert line_of(table, "final validation loss") == ["2.0000", "1.5000", "-0.5000"]


def test_lists_of_numbers_lie_on_one_line() -> None:
    values = {"curve": [1.5, 2.5, 3.5], "names": ["a", "b"]}
    text = as_json(values)
    assert "[ 1.5, 2.5, 3.5 ]" in text
    assert json.loads(text) == values

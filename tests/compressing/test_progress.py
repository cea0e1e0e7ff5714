"""Silence where nobody watches, a bar where somebody does."""

import io

import pytest
import rich.console

from noble_fx.compressing.progress import progress_bar


@pytest.mark.parametrize("count", [3, 0])
def test_items_pass_and_nothing_is_printed(count, capfd):
    with progress_bar(True) as track:
        assert list(track([1, 2, 3], "calibrating", count)) == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_in_a_terminal(shown, monkeypatch):
    text, console = io.StringIO(), rich.console.Console
    monkeypatch.setattr(rich.console, "Console", lambda stderr: console(file=text, force_terminal=True, width=80))
    with progress_bar(shown) as track:
        for _ in track([1, 2, 3], "calibrating", 3):
            pass
    assert ("calibrating" in text.getvalue()) == shown

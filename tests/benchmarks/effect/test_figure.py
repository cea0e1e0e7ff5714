"""The curves of the finalists."""

from __future__ import annotations

import pytest

from benchmarks.effect.figure import draw
from benchmarks.effect.run import Run


def test_a_panel_for_each_task(tmp_path):
    pytest.importorskip("matplotlib")
    curve = {"at": [10, 20], "validation": [2.0, 1.0], "diverged_at": None, "parameters": 1}
    worse = {**curve, "validation": [3.0, 2.0]}
    rates = {1e-3: worse, 2e-3: curve, 4e-3: worse}
    records = {Run("digits", "plain", 20, rate, 0): record for rate, record in rates.items()}
    records |= {Run("digits", "plain", 20, 2e-3, 1): worse}
    draw(records, {"digits": 20}, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()

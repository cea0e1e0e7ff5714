"""What a step takes, in turns."""

from __future__ import annotations

import torch

from benchmarks.effect import pace
from benchmarks.effect.tasks import TASKS


def test_plain_is_what_others_are_measured_by():
    threads = torch.get_num_threads()
    found = pace.measure(TASKS["digits"], ["paper"], rounds=2)
    assert found["plain"] == 1.0
    assert found["paper"] > 0
    assert torch.get_num_threads() == threads

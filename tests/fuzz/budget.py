"""How many cases a fuzz test draws: few and always the same in the suite, many and new ones in `make fuzz`."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

CASES = int(os.environ.get("NOBLE_FX_FUZZ_CASES", 0))  # of each test; 0: the small budget of the suite


def fuzzed(few: int, cost: float = 1.0) -> Callable[[Any], Any]:
    """Marks a property as a fuzz test: `few` cases in the suite, NOBLE_FX_FUZZ_CASES of them in `make fuzz`.

    Where a case takes `cost` times as long as a cheap one, so many fewer are drawn.
    """
    budget = settings(
        max_examples=max(1, int(CASES / cost)) if CASES else few,
        derandomize=not CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],  # to explain a failure takes minutes of runs, and says little
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: pytest.mark.fuzz(budget(test))

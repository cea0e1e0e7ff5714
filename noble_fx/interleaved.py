"""Timing that survives a noisy machine: the variants take turns, and each round is compared with itself.

One round calls every variant once, in an order that rotates. A variant's overhead is the median over rounds of
(its time / the baseline's time in the same round) − 1, so a machine that slows down half-way slows both sides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """One variant beside the baseline of its run."""

    name: str
    milliseconds: float  # median
    overhead: float  # median of per-round ratios, minus 1
    spread: tuple[float, float]  # quartiles of the overhead


def interleave(
    variants: dict[str, Callable[[], object]],
    baseline: str,
    rounds: int = 200,
    warmup: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time every variant in turn for `rounds` rounds by `clock`; the first `warmup` rounds are thrown away."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            variants[name]()
            elapsed = clock() - start
            if index >= warmup:
                seconds[name].append(elapsed)
    out = []
    for name in names:
        ratios = [a / b - 1 for a, b in zip(seconds[name], seconds[baseline], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        out.append(Timing(name, 1e3 * statistics.median(seconds[name]), middle, (low, high)))
    return out


def machine() -> dict[str, object]:
    """What a figure depends on."""
    import platform
    import re
    from pathlib import Path

    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return {
        "cpu": model.group(1) if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }

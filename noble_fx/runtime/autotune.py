"""Which of several right ways to run a layer is fastest here: measured once, on the whole layer, then remembered.

A generated product that adds the branch to its own accumulator saves a pass over y; the vendor's GEMM is a few percent
faster at the product itself. Which wins depends on the shape and the GPU, and a product measured alone does not tell:
caches, launches and the other kernels count. So each way is run whole, in turns, and the median decides.

The answer is kept in this process and in `<cache>/choices/`, one small JSON file for each question, written atomically;
a file that does not read as an answer to the question is ignored and written again. Nothing is measured inside a CUDA
graph capture, under `torch.use_deterministic_algorithms`, or with NOBLE_FX_TUNE=0: the default is taken then.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from noble_fx.codegen.cache import cache_folder
from noble_fx.errors import KernelError
from noble_fx.files import write_atomically

Way = tuple[str, ...]
WARM_UP, ROUNDS = 3, 20

_log = logging.getLogger(__name__)
_known: dict[str, Way] = {}


def choose(question: str, ways: Sequence[Way], default: Way, run: Callable[[Way], object], device: torch.device) -> Way:
    """The fastest of `ways`, or `default` where nothing may be measured; `run(way)` does the whole work once."""
    if len(ways) == 1:
        return ways[0]
    if question in _known:
        return _known[question]
    if not may_measure():
        return default  # not remembered: a later call may measure
    file = _file(question)
    way = _read(file, question, ways)
    if way is None:
        times = measure(ways, run, device)
        way = min(times, key=times.__getitem__)
        _write(file, question, way, times)
    _known[question] = way
    return way


def answers() -> dict[str, Way]:
    """Every question that this process has an answer to."""
    return dict(_known)


def forget() -> None:
    """Forget what this process knows; the files stay."""
    _known.clear()


def may_measure() -> bool:
    """False where timing is forbidden (a capture), unwanted (NOBLE_FX_TUNE=0), or would make results vary."""
    if os.environ.get("NOBLE_FX_TUNE", "1") == "0" or torch.are_deterministic_algorithms_enabled():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def measure(ways: Sequence[Way], run: Callable[[Way], object], device: torch.device) -> dict[Way, float]:
    """Median milliseconds of each way, in turns, so that a clock that drifts drifts for all.

    A way that the GPU or the compiler refuses is left out; `KernelError` where that leaves none.
    """
    times: dict[Way, list[float]] = {}
    refused: KernelError | None = None
    for way in ways:
        try:
            for _ in range(WARM_UP):  # compiles, too
                run(way)
            times[way] = []
        except KernelError as reason:
            refused = reason
    if not times and refused is not None:
        raise refused
    for _ in range(ROUNDS):
        for way in times:
            times[way].append(_once(lambda way=way: run(way), device))  # type: ignore[misc]
    return {way: statistics.median(found) for way, found in times.items()}


def _once(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    with torch.cuda.device(device):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end)


def _file(question: str) -> Path:
    return cache_folder() / "choices" / f"{hashlib.sha256(question.encode('utf-8')).hexdigest()[:24]}.json"


def _read(file: Path, question: str, ways: Sequence[Way]) -> Way | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        way = tuple(found["way"])
        return way if found["question"] == question and way in ways else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, question: str, way: Way, times: dict[Way, float]) -> None:
    shown = [{"way": list(one), "milliseconds": spent} for one, spent in times.items()]
    answer = {"question": question, "way": list(way), "times": shown}
    try:
        write_atomically(file, (json.dumps(answer, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    except OSError as problem:
        _log.warning("cannot keep the choice in %s (%s); the next process will measure again", file, problem)

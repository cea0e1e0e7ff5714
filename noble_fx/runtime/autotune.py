"""Which of several variants of a layer, all right, is fastest here: measured once, on the whole layer, then remembered.

A generated product that adds the branch to its own accumulator saves a pass over y; the vendor's GEMM is a few percent
faster at the product itself. Which wins depends on the shape and the GPU, and a product measured alone does not tell:
caches, launches and the other kernels count. So each variant is run whole, in turns, and the median decides.

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

Variant = tuple[str, ...]
WARM_UP, ROUNDS = 3, 20
_FORMAT = 2  # of the files: raise it when what they hold changes; those of another format are left alone

_log = logging.getLogger(__name__)
_answers: dict[str, Variant] = {}


def choose(
    question: str, variants: Sequence[Variant], default: Variant, run: Callable[[Variant], object], device: torch.device
) -> Variant:
    """The fastest variant, or `default` where nothing may be measured; `run(variant)` does the whole work once."""
    if len(variants) == 1:
        return variants[0]
    if question in _answers:
        return _answers[question]
    if not may_measure():
        return default  # not remembered: a later call may measure
    file = _file(question)
    variant = _read(file, question, variants)
    if variant is None:
        times = measure(variants, run, device)
        variant = min(times, key=times.__getitem__)
        _write(file, question, variant, times)
    _answers[question] = variant
    return variant


def is_final(question: str, variants: Sequence[Variant]) -> bool:
    """Whether `choose` will answer so for good; a default is taken only until something may be measured."""
    return len(variants) == 1 or question in _answers


def answers() -> dict[str, Variant]:
    """Every question that this process has an answer to."""
    return dict(_answers)


def forget() -> None:
    """Forget what this process knows; the files stay."""
    _answers.clear()


def may_measure() -> bool:
    """False where timing is forbidden (a capture), unwanted (NOBLE_FX_TUNE=0), or would make results vary."""
    if os.environ.get("NOBLE_FX_TUNE", "1") == "0" or torch.are_deterministic_algorithms_enabled():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def measure(
    variants: Sequence[Variant], run: Callable[[Variant], object], device: torch.device
) -> dict[Variant, float]:
    """Median milliseconds of each variant, in turns, so that a clock that drifts drifts for all.

    A variant that the GPU or the compiler refuses is left out; `KernelError` where that leaves none.
    """
    times: dict[Variant, list[float]] = {}
    refused: KernelError | None = None
    for variant in variants:
        try:
            for _ in range(WARM_UP):  # compiles, too
                run(variant)
            times[variant] = []
        except KernelError as reason:
            refused = reason
    if not times and refused is not None:
        raise refused
    for _ in range(ROUNDS):
        for variant in times:
            times[variant].append(_milliseconds(lambda variant=variant: run(variant), device))  # type: ignore[misc]
    return {variant: statistics.median(spent) for variant, spent in times.items()}


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
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
    name = hashlib.sha256(f"{_FORMAT} {question}".encode()).hexdigest()[:24]
    return cache_folder() / "choices" / f"{name}.json"


def _read(file: Path, question: str, variants: Sequence[Variant]) -> Variant | None:
    try:
        answer = json.loads(file.read_text(encoding="utf-8"))
        variant = tuple(answer["variant"])
        return variant if answer["question"] == question and variant in variants else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, question: str, variant: Variant, times: dict[Variant, float]) -> None:
    milliseconds = [{"variant": list(each), "milliseconds": spent} for each, spent in times.items()]
    answer = {"question": question, "variant": list(variant), "times": milliseconds}
    try:
        write_atomically(file, (json.dumps(answer, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    except OSError as problem:
        _log.warning("cannot keep the choice in %s (%s); the next process will measure again", file, problem)

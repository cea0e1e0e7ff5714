"""What is not faster stays dense, and says what was measured."""

import pytest
import torch
from torch import nn

from noble_fx.compressing import timing
from noble_fx.compressing.allocation.base import DENSE
from noble_fx.compressing.timing import Stopwatch
from noble_fx.interleaved import Timing
from tests.compressing.allocation.layers import layer
from tests.compressing.models import places_of


def stopwatch(monkeypatch, overhead: float) -> tuple[Stopwatch, list]:
    calls = []

    def measured(variants, baseline, rounds, warmup):
        outputs = {name: call() for name, call in variants.items()}
        calls.append({name: tuple(y.shape) for name, y in outputs.items()})
        return [Timing("dense", 1.0, 0.0, (0.0, 0.0)), Timing("thin", 1.0, overhead, (overhead, overhead))]

    monkeypatch.setattr(timing, "interleave", measured)
    model = nn.ModuleDict({"a": nn.Linear(32, 64), "b": nn.Linear(32, 64), "c": nn.Linear(32, 32)})
    return Stopwatch(places_of(model, "all"), rows=4), calls


def test_what_is_faster_stays_decided(monkeypatch):
    watch, calls = stopwatch(monkeypatch, -0.3)
    assert watch.check(layer("a", 64, 32), (8, "")) == (8, "")
    assert calls == [{"dense": (4, 64), "thin": (4, 64)}]


def test_what_is_slower_stays_dense(monkeypatch):
    watch, _ = stopwatch(monkeypatch, 0.25)
    rank, why = watch.check(layer("a", 64, 32), (8, ""))
    assert (rank, why) == (DENSE, "two thin products of rank 8 take 1.25 times as long at 4 rows, measured here")


def test_each_shape_is_measured_once(monkeypatch):
    watch, calls = stopwatch(monkeypatch, 0.25)
    for name, outputs in (("a", 64), ("b", 64), ("c", 32)):
        watch.check(layer(name, outputs, 32), (8, ""))
    assert len(calls) == 2
    assert watch.check(layer("a", 64, 32), (DENSE, "too small")) == (DENSE, "too small")
    assert len(calls) == 2


@pytest.mark.parametrize(("rank", "faster"), [(16, True), (4000, False)])
def test_measured_for_real(rank, faster):
    """A rank of 1/64 of the numbers is faster, and one of twice as many is slower, on any machine."""
    ratio = timing._ratio(2048, 2048, rank, 64, torch.float32, torch.device("cpu"))
    assert (ratio < 1) == faster

"""Choosing by measuring: once, in turns, remembered on the disk, and not where it is forbidden."""

import json

import pytest
import torch

from noble_fx.errors import KernelError
from noble_fx.runtime import autotune
from noble_fx.runtime.autotune import choose, forget, measure

CPU = torch.device("cpu")
SLOW, FAST = ("slow",), ("fast",)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    monkeypatch.delenv("NOBLE_FX_TUNE", raising=False)
    forget()
    yield tmp_path / "choices"
    forget()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the runs themselves advance."""

    class Clock:
        now = 0.0
        runs: list[tuple[str, ...]] = []

        def run(self, variant):
            self.runs.append(variant)
            self.now += 2.0 if variant == SLOW else 1.0

    found = Clock()
    found.runs = []
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: found.now)
    return found


def test_the_fastest_is_chosen_and_the_variants_take_turns(clock):
    assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == FAST
    timed = clock.runs[2 * autotune.WARM_UP :]
    assert timed == [SLOW, FAST] * autotune.ROUNDS


def test_the_answer_is_kept_in_the_process_and_on_the_disk(clock, cache):
    choose("question", [SLOW, FAST], SLOW, clock.run, CPU)
    clock.runs.clear()
    assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == FAST
    forget()
    assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == FAST
    assert clock.runs == []
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    assert kept["question"] == "question"
    assert kept["times"] == [
        {"variant": ["slow"], "milliseconds": 2000.0},
        {"variant": ["fast"], "milliseconds": 1000.0},
    ]
    assert choose("another question", [SLOW, FAST], SLOW, clock.run, CPU) == FAST
    assert clock.runs


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"question": "question"}',
        b'{"question": "question", "variant": 3}',
        b'{"question": "question", "variant": ["unknown"]}',
        b'{"question": "another", "variant": ["slow"]}',
    ],
)
def test_a_file_that_is_no_answer_is_measured_and_written_again(clock, cache, content):
    choose("question", [SLOW, FAST], SLOW, clock.run, CPU)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    forget()
    assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == FAST
    assert file.read_bytes() == good


def test_one_variant_needs_no_measuring(clock):
    assert choose("question", [FAST], FAST, clock.run, CPU) == FAST
    assert clock.runs == []


def test_where_measuring_is_forbidden_the_default_is_taken_and_not_remembered(clock, cache, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_TUNE", "0")
    assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == SLOW
    monkeypatch.setenv("NOBLE_FX_TUNE", "1")
    torch.use_deterministic_algorithms(True)
    try:
        assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == SLOW
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == SLOW
    assert clock.runs == []
    assert not cache.exists()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == FAST


def test_a_cache_that_cannot_be_written_is_a_warning(clock, cache, caplog):
    cache.write_text("in the way")
    assert choose("question", [SLOW, FAST], SLOW, clock.run, CPU) == FAST
    assert "cannot keep the choice" in caplog.text


def test_a_variant_that_the_gpu_refuses_is_left_out(clock):
    def run(variant):
        if variant == FAST:
            raise KernelError("out of shared memory")
        clock.run(variant)

    assert choose("question", [FAST, SLOW], FAST, run, CPU) == SLOW

    def refuse(variant):
        raise KernelError("out of shared memory")

    with pytest.raises(KernelError, match="shared memory"):
        choose("another", [FAST, SLOW], FAST, refuse, CPU)


def test_real_time_is_measured():
    found = measure([FAST, SLOW], lambda variant: sum(range(200_000 if variant == SLOW else 20)), CPU)
    assert 0 < found[FAST] < found[SLOW]

"""What Triton compiled is started with what its own launcher would start it with."""

import contextvars
from types import SimpleNamespace

import pytest
import torch

from noble_fx.runtime import compiled


def test_a_start_hands_the_arguments_on():
    seen = []
    kernel = SimpleNamespace(run=lambda *arguments: seen.append(arguments), function=11, packed_metadata=(2, 3))
    assert compiled.can_start(kernel)
    compiled.starter(kernel, 5)(7, (100, 200))
    assert seen == [(5, 1, 1, 7, 11, (2, 3), None, None, None, 100, 200)]


def test_what_the_interpreter_gives_cannot_be_started():
    assert not compiled.can_start(None)


@pytest.mark.parametrize(("current", "expected"), [(1, 41), (0, None)])
def test_the_stream_is_that_of_the_current_device_alone(monkeypatch, current, expected):
    driver = SimpleNamespace(get_current_device=lambda: current, get_current_stream=lambda index: 40 + index)
    monkeypatch.setattr(compiled, "_driver", lambda: driver)
    assert compiled.stream_of(torch.device("cuda", 1)) == expected


@pytest.mark.parametrize(
    ("enter", "leave", "observed"),
    [
        (None, None, False),
        (SimpleNamespace(calls=[]), SimpleNamespace(calls=[]), False),
        (SimpleNamespace(calls=[print]), SimpleNamespace(calls=[]), True),
        (None, print, True),
    ],
)
def test_hooks_are_seen_in_every_form_that_triton_gave_them(monkeypatch, enter, leave, observed):
    monkeypatch.setattr(compiled, "_runtime", lambda: SimpleNamespace(launch_enter_hook=enter, launch_exit_hook=leave))
    assert compiled.is_observed() is observed


def test_the_installed_triton_has_what_is_asked_of_it():
    pytest.importorskip("triton")
    assert compiled.is_observed() is False


def test_memory_is_lent_for_the_launch_alone():
    triton = pytest.importorskip("triton")
    from triton.runtime import _allocation

    def launch(size, *, alignment):
        return _allocation._allocator.get()(size, alignment, None)

    def own(size, alignment, stream):
        return "the user's"

    def check():
        triton.set_allocator(own)
        assert _allocation._allocator.get() is own
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "empty", lambda size, dtype, device: (size, dtype, device))
            assert compiled.lent_memory(launch)(256, alignment=128) == (256, torch.int8, "cuda")
        assert _allocation._allocator.get() is own

    contextvars.copy_context().run(check)


def test_a_start_with_descriptors_lends_memory():
    pytest.importorskip("triton")
    from triton.runtime import _allocation

    seen = []
    kernel = SimpleNamespace(
        run=lambda *arguments: seen.append(_allocation._allocator.get().__name__), function=11, packed_metadata=()
    )
    compiled.starter(kernel, 5, descriptors=True)(7, (100,))
    assert seen == ["lend"]

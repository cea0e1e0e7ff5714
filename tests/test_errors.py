"""Errors and refusals: what they are, and the nearest known name."""

import pytest

import noble_fx
from noble_fx import NobleError, Refusal
from noble_fx.errors import nearest, printable


@pytest.mark.parametrize("name", ["ConfigError", "CaptureError", "CheckpointError", "ExportError", "KernelError"])
def test_every_error_on_purpose_is_one_kind(name):
    assert issubclass(getattr(noble_fx, name), NobleError)
    assert issubclass(NobleError, ValueError)


def test_a_refusal_is_its_reason_and_is_true():
    refusal = Refusal("too narrow")
    assert str(refusal) == "too narrow"
    assert refusal == Refusal("too narrow")
    assert refusal  # so that `if refusal := …` asks whether there is one


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("cosnt", ["cosnet", "gelu"], "; nearest: 'cosnet'"),
        (
            "q_prj",
            ["layers.0.q_proj", "layers.1.q_proj", "layers.0.fc"],
            "; nearest: 'layers.0.q_proj', 'layers.1.q_proj'",
        ),
        ("zzz", ["cosnet"], ""),
        ("anything", [], ""),
    ],
)
def test_the_nearest_names(name, known, answer):
    assert nearest(name, known) == answer


def test_text_that_can_be_printed():
    assert printable("layers.0 → σ") == "layers.0 → σ"
    assert printable("a\nb\x1b[31m\ud800\0") == "a\\nb\\x1b[31m\\ud800\\x00"
    assert printable(3) == "3"

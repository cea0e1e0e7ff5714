"""Errors and refusals: what they are, and the nearest known name."""

import pytest

import noble_fx
from noble_fx import NobleError, Refusal
from noble_fx.errors import nearest


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

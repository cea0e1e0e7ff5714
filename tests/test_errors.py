"""Errors and refusals: what they are, and the nearest known name."""

import numpy
import pytest
import torch

import noble_fx
from noble_fx import ConfigError, NobleError, Refusal
from noble_fx.errors import check_flag, nearest, printable, shown


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


def test_a_value_is_shown_on_one_line_that_fits():
    assert shown("a\n\x1b") == "'a\\n\\x1b'"
    assert shown(torch.zeros(2, 2)).isprintable()
    assert len(shown(list(range(10_000)))) == 200


def test_a_flag_is_true_or_false():
    for flag in (True, False):
        check_flag("fold", flag, ConfigError)
    for value in ("no", 1, None, numpy.zeros(2), torch.zeros(2)):
        with pytest.raises(ConfigError, match=r"fold=.* must be True or False"):
            check_flag("fold", value, ConfigError)

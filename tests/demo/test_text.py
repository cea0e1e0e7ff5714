"""The text and its batches, which plain and NOBLE share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noble_fx.demo import text as texts


def test_split_is_by_file_and_deterministic(library: Path) -> None:
    text, again = texts.standard_library(library), texts.standard_library(library)
    assert not set(text.train_files) & set(text.validation_files)
    assert len(text.train_files) + len(text.validation_files) == 60  # nothing of test/
    assert 0 < len(text.validation_files) < 12
    assert torch.equal(text.train, again.train)
    assert torch.equal(text.validation, again.validation)


def test_a_file_never_changes_sides(library: Path) -> None:
    before = texts.standard_library(library)
    (library / before.train_files[0]).unlink()
    after = texts.standard_library(library)
    assert after.train_files == before.train_files[1:]
    assert after.validation_files == before.validation_files


def test_a_python_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="without its sources"):
        texts.standard_library(tmp_path)


def test_batches_depend_on_seed_and_step_only() -> None:
    text = torch.arange(5000).remainder(251).to(torch.uint8)
    inputs, targets = texts.batch_at(text, step=7, seed=3, batch=4, context=16)
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(inputs, texts.batch_at(text, 7, 3, 4, 16)[0])
    assert not torch.equal(inputs, texts.batch_at(text, 8, 3, 4, 16)[0])
    assert not torch.equal(inputs, texts.batch_at(text, 7, 4, 4, 16)[0])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])

"""The Trainer example: it trains, goes on where it stopped, and its folder is read back."""

import json
from pathlib import Path

import pytest

from examples.pretrain import train_hf

TINY = ["--batch", "2", "--context", "16", "--width", "32", "--layers", "1", "--rank", "4"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):  # some of the names hash to the validation side
        (folder / f"file{i}.py").write_text(f"def function_{i}(x):\n    return x + {i}\n" * 20)
    return folder


def run(out: Path, text: Path, *more: str) -> dict[str, float]:
    return train_hf.main(["--out", str(out), "--text", str(text), *TINY, *more])


def test_it_trains_and_goes_on_where_it_stopped(text, tmp_path, capsys):
    whole = run(tmp_path, text, "--steps", "4")
    assert "validation loss" in capsys.readouterr().out
    assert json.loads((tmp_path / "model" / "config.json").read_text())["noble"]["rank"] == 4
    assert run(tmp_path, text, "--steps", "4", "--resume")["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-6)
    assert whole["eval_loss"] < 5.6  # log 256 = 5.55 at the start, and the rates are still small


def test_plain_has_no_branches(text, tmp_path):
    run(tmp_path, text, "--steps", "1", "--plain")
    assert "noble" not in json.loads((tmp_path / "model" / "config.json").read_text())

"""The pretraining script: alone and on two processes, stopped and resumed, plain, with Muon."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.pretrain import train_gpt

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "6", "--every", "3", "--batch", "2", "--context", "16", "--width", "16", "--layers", "1"]
TINY += ["--heads", "2", "--rank", "3", "--weight-decay", "0.1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.py"
    file.write_text("def function(x):\n    return x + 1\n" * 1000)
    return file


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def run(text: Path, out: Path, *more: str) -> list[dict]:
    train_gpt.main(["--text", str(text), "--out", str(out), *TINY, *more])
    return lines(out)


def test_stopped_and_resumed_it_is_the_same_run(text, tmp_path, capsys):
    settings, *whole = run(text, tmp_path / "whole")
    assert settings["torch"] == torch.__version__
    assert [line["step"] for line in whole] == [3, 6]
    assert whole[1]["validation"] < whole[0]["validation"] < 6
    assert "noble.up" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "whole" / "step-6")
    resumed = run(text, tmp_path / "whole")[-1]
    assert "going on from step 3" in capsys.readouterr().out
    assert (resumed["step"], resumed["train"], resumed["validation"]) == (6, whole[1]["train"], whole[1]["validation"])


@pytest.mark.parametrize("more", [["--plain"], ["--muon"], ["--select", "ffn", "--act", "gelu"]], ids=" ".join)
def test_its_switches(more, text, tmp_path):
    assert len(run(text, tmp_path, *more)) == 3
    names = torch.distributed.checkpoint.FileSystemReader(tmp_path / "step-6").read_metadata().state_dict_metadata
    assert any(".noble." in name for name in names) == (more != ["--plain"])


def test_too_little_text_and_a_shard_of_nothing_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "short.py").write_text("pass")
    with pytest.raises(SystemExit, match="holds 4 bytes of text"):
        run(tmp_path / "short.py", tmp_path / "out")
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SystemExit, match="--fsdp needs torchrun"):
        run(text, tmp_path / "out", "--fsdp")


def test_a_run_goes_on_with_its_own_settings_or_not_at_all(text, tmp_path):
    before = run(text, tmp_path)
    for switch in (["--plain"], ["--rank", "2"], ["--act", "gelu"], ["--select", "ffn"], ["--layers", "2"], ["--muon"]):
        with pytest.raises(SystemExit, match=rf"the run in .* has {switch[0]} .* give another --out"):
            run(text, tmp_path, *switch)
    assert lines(tmp_path) == before


@pytest.mark.long
@pytest.mark.parametrize("more", [[], ["--fsdp"], ["--fsdp", "--muon"], ["--fsdp", "--compile"]], ids=" ".join)
def test_two_processes(more, text, tmp_path):
    alone = run(text, tmp_path / "alone", "--batch", "4", *[switch for switch in more if switch == "--muon"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "examples.pretrain.train_gpt", "--text", str(text), "--out", str(tmp_path / "two"), *TINY, *more]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = lines(tmp_path / "two")
    assert found[0]["processes"] == 2
    assert [line["step"] for line in found[1:]] == [3, 6]
    assert found[-1]["validation"] == pytest.approx(alone[-1]["validation"], abs=0.3)  # other batches, the same text

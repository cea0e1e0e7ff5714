"""The demo itself with a tiny model: what it writes, what it refuses to replace."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from noble_fx.demo import run as demo
from noble_fx.demo.result import as_json
from noble_fx.errors import NobleError
from noble_fx.files import staged

FILES = ["loss.png", "result.json"]


def test_demo_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    out, folder = io.StringIO(), tmp_path / "demo"
    console = Console(file=out, width=120)
    size = {"batch": 2, "context": 32, "width": 32, "layers": 2, "heads": 2}
    result = demo.run_demo(folder, steps=4, lr=2e-3, rank=4, console=console, **size)
    stored = json.loads((folder / "result.json").read_text())
    assert result.checkpoint_difference == 0.0
    assert result.onnx_difference <= demo.ONNX_TOLERANCE
    assert result.noble.parameters > result.plain.parameters
    assert stored["plain"]["validation"] == result.plain.validation
    assert set(stored["files"]) == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {"loss.png", "sigma.png", "model.onnx", "report.html", "result.json"} <= {p.name for p in folder.iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]  # nothing beside it is left over
    assert "final validation loss" in out.getvalue()

    demo._check_replaceable(folder)  # the demo may replace its own folder
    (folder / "checkpoint" / "notes.txt").write_text("mine")
    with pytest.raises(NobleError, match=r"checkpoint/notes\.txt"):
        demo.run_demo(folder, steps=1)


def test_the_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "demo"

    def write(text: str, fail: bool = False) -> None:
        with staged(folder, NobleError, overwrite=True) as work:
            new = work / folder.name
            new.mkdir()
            (new / "loss.png").write_text(text)
            (new / "result.json").write_text(as_json({"made_by": "noble-fx demo", "files": FILES}))
            if fail:
                raise RuntimeError

    write("first")
    write("second")
    with pytest.raises(RuntimeError):
        write("third", fail=True)
    assert (folder / "loss.png").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("name", ["notes.txt", "loss.png", "sub/result.json"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(NobleError, match="did not write"):
        demo.run_demo(tmp_path, steps=1)
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(NobleError, match="is a file"):
        demo.run_demo(tmp_path / "demo", steps=1)


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NobleError, match=r"noble-fx\[onnx,report\]"):
        demo.run_demo(tmp_path / "demo", steps=1)

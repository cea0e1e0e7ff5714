"""The demo's parts, and the demo itself with a tiny model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import noble_fx
from noble_fx import demo
from noble_fx.errors import NobleError

FILES = ["loss.png", "result.json"]
gpt, data = demo.load_example("byte_gpt"), demo.load_example("train_bytes")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A little tree of files that looks like a standard library."""
    root = tmp_path / "lib"
    for i in range(60):
        path = root / f"package{i % 3}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# module {i}\n" + "".join(f"x{j} = {i} * {j}\n" for j in range(40)))
    (root / "test").mkdir()
    (root / "test" / "test_module.py").write_text("not to be read")
    return root


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return gpt.ByteGPT(width=32, layers=2, heads=2, context=32)


def test_split_is_by_file_and_deterministic(library: Path) -> None:
    text, again = data.standard_library(library), data.standard_library(library)
    assert not set(text.train_files) & set(text.validation_files)
    assert len(text.train_files) + len(text.validation_files) == 60  # nothing of test/
    assert 0 < len(text.validation_files) < 12
    assert torch.equal(text.train, again.train)
    assert torch.equal(text.validation, again.validation)


def test_a_file_never_changes_sides(library: Path) -> None:
    before = data.standard_library(library)
    (library / before.train_files[0]).unlink()
    after = data.standard_library(library)
    assert after.train_files == before.train_files[1:]
    assert after.validation_files == before.validation_files


def test_a_python_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="without its sources"):
        data.standard_library(tmp_path)


def test_batches_depend_on_seed_and_step_only() -> None:
    text = torch.arange(5000).remainder(251).to(torch.uint8)
    inputs, targets = data.batch_at(text, step=7, seed=3, batch=4, context=16)
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(inputs, data.batch_at(text, 7, 3, 4, 16)[0])
    assert not torch.equal(inputs, data.batch_at(text, 8, 3, 4, 16)[0])
    assert not torch.equal(inputs, data.batch_at(text, 7, 4, 4, 16)[0])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize(
    ("losses", "goal", "expected"),
    [
        ([4.0, 3.0, 2.0], 2.5, 25.0),  # half way between 20 and 30
        ([4.0, 3.0, 2.0], 2.0, 30.0),
        ([4.0, 3.0, 2.0], 4.0, 10.0),
        ([4.0, 3.0, 2.0], 5.0, 10.0),  # before the first evaluation nothing is known
        ([4.0, 2.0, 3.0], 3.0, 15.0),  # the first crossing counts
        ([4.0, 3.0, 2.0], 1.9, None),
        ([float("nan")] * 3, 1.9, None),
    ],
)
def test_steps_to_reach(losses: list[float], goal: float, expected: float | None) -> None:
    assert data.steps_to_reach(data.Curve([10, 20, 30], losses), goal) == expected


def test_schedule_warms_up_then_falls_to_a_tenth() -> None:
    factors = [data.schedule(step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99] == max(factors) == 1.0
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_groups_multiplier_survives_the_schedule(library: Path) -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow, self.fast = nn.Parameter(torch.zeros(256)), nn.Parameter(torch.zeros(256))

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            return (self.slow + self.fast).expand(*idx.shape, 256)

    model = Twin()
    groups = [{"params": [p], "lr": lr, "weight_decay": 0.0} for p, lr in ((model.slow, 1e-3), (model.fast, 5e-3))]
    data.train(model, groups, data.standard_library(library), steps=5, batch=2, context=16, evaluations=1)
    assert groups[0]["lr"] == 1e-3  # the caller's groups can be used again
    torch.testing.assert_close(model.fast, 5 * model.slow)


def test_symbolic_trace_of_the_model_is_the_model() -> None:
    model = tiny()
    traced = torch.fx.symbolic_trace(model.train())
    assert str(traced.graph) == str(torch.fx.symbolic_trace(model.eval()).graph)
    for shape in ((3, 32), (1, 7)):
        idx = torch.randint(256, shape)
        assert torch.equal(traced(idx), model(idx))


def test_a_later_byte_changes_no_earlier_logit() -> None:
    model, idx = tiny(), torch.randint(256, (1, 20))
    changed = idx.clone()
    changed[0, 12] = (idx[0, 12] + 1) % 256
    torch.testing.assert_close(model(changed)[:, :12], model(idx)[:, :12])
    assert not torch.equal(model(changed)[:, 12:], model(idx)[:, 12:])


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
    assert {"loss.png", "model.onnx", "explain.txt", "result.json"} <= {p.name for p in folder.iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]  # nothing beside it is left over
    assert "final validation loss" in out.getvalue()

    demo._check_replaceable(folder)  # the demo may replace its own folder
    (folder / "checkpoint" / "notes.txt").write_text("mine")
    with pytest.raises(NobleError, match=r"checkpoint/notes\.txt"):
        demo.run_demo(folder, steps=1)


def test_two_runs_of_one_seed_are_equal(library: Path) -> None:
    def final() -> float:
        groups = noble_fx.param_groups(model := tiny(), lr=1e-3, weight_decay=0.1)
        curve = data.train(model, groups, data.standard_library(library), 3, batch=2, context=32, evaluations=1)
        return curve.validation[-1]

    assert final() == final()


def test_the_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "demo"

    def write(text: str, fail: bool = False) -> None:
        with demo._replacing(folder) as new:
            (new / "loss.png").write_text(text)
            (new / "result.json").write_text(demo.as_json({"made_by": "noble-fx demo", "files": FILES}))
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


def test_never_reaching_is_said(tmp_path: Path) -> None:
    out = io.StringIO()
    plain = demo.Run(100, [5, 10], [3.0, 2.0], [3.0, 2.0], 0.1)
    noble = demo.Run(110, [5, 10], [3.0, 2.5], [3.0, 2.5], 0.2)
    Console(file=out, width=120).print(demo._table(plain, noble, data.steps_to_reach(noble, plain.final)))
    assert "not reached in 10 steps" in out.getvalue()

"""The text, the batches and the loop that plain and NOBLE share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import noble_fx
from examples import train_bytes
from examples.byte_gpt import ByteGPT


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


def test_split_is_by_file_and_deterministic(library: Path) -> None:
    text, again = train_bytes.standard_library(library), train_bytes.standard_library(library)
    assert not set(text.train_files) & set(text.validation_files)
    assert len(text.train_files) + len(text.validation_files) == 60  # nothing of test/
    assert 0 < len(text.validation_files) < 12
    assert torch.equal(text.train, again.train)
    assert torch.equal(text.validation, again.validation)


def test_a_file_never_changes_sides(library: Path) -> None:
    before = train_bytes.standard_library(library)
    (library / before.train_files[0]).unlink()
    after = train_bytes.standard_library(library)
    assert after.train_files == before.train_files[1:]
    assert after.validation_files == before.validation_files


def test_a_python_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="without its sources"):
        train_bytes.standard_library(tmp_path)


def test_batches_depend_on_seed_and_step_only() -> None:
    text = torch.arange(5000).remainder(251).to(torch.uint8)
    inputs, targets = train_bytes.batch_at(text, step=7, seed=3, batch=4, context=16)
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(inputs, train_bytes.batch_at(text, 7, 3, 4, 16)[0])
    assert not torch.equal(inputs, train_bytes.batch_at(text, 8, 3, 4, 16)[0])
    assert not torch.equal(inputs, train_bytes.batch_at(text, 7, 4, 4, 16)[0])
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
    assert train_bytes.steps_to_reach(train_bytes.Curve([10, 20, 30], losses), goal) == expected


def test_schedule_warms_up_then_falls_to_a_tenth() -> None:
    factors = [train_bytes.schedule(step, 1000) for step in range(1000)]
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
    train_bytes.train(model, groups, train_bytes.standard_library(library), steps=5, batch=2, context=16, evaluations=1)
    assert groups[0]["lr"] == 1e-3  # the caller's groups can be used again
    torch.testing.assert_close(model.fast, 5 * model.slow)


def test_two_runs_of_one_seed_are_equal(library: Path) -> None:
    def final() -> float:
        torch.manual_seed(0)
        model = ByteGPT(width=32, layers=2, heads=2, context=32)
        groups = noble_fx.param_groups(model, lr=1e-3, weight_decay=0.1)
        curve = train_bytes.train(
            model, groups, train_bytes.standard_library(library), 3, batch=2, context=32, evaluations=1
        )
        return curve.validation[-1]

    assert final() == final()

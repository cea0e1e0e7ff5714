"""`make test` and `make test TORCH=…`: which virtual environment each one uses, and what it pins there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def commands(tmp_path):
    """What `make` would run in a fresh checkout, for its arguments."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def dry_run(*arguments: str) -> str:
        # The suite may itself have been started by make, which tells those that it starts what it was told.
        environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
        command = ["make", "-n", *arguments]
        make = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return make.stdout

    return dry_run


def test_the_pinned_torch_lives_in_venv(commands):
    lines = commands("test")
    assert ".venv/bin/python -m pytest" in lines
    assert ".venv/bin/mypy" in lines
    assert ".venv/bin/mkdocs build --strict\n" in lines  # --quiet would hide the warnings that --strict counts
    assert ".venv-torch" not in lines


def test_another_torch_leaves_venv_alone(commands):
    lines = commands("test", "TORCH=2.15.0")
    assert ".venv-torch2.15.0/bin/python -m pytest" in lines
    assert ".venv/" not in lines


def test_another_torch_brings_what_it_was_made_for(commands, tmp_path):
    """torch names its own triton and setuptools, old tritons need an older NumPy; every other pin stays."""
    pins = next(line for line in commands("test", "TORCH=2.11.0").splitlines() if line.startswith("sed"))
    (tmp_path / ".venv-torch2.11.0").mkdir()
    subprocess.run(pins, shell=True, cwd=tmp_path, check=True)
    written = (tmp_path / ".venv-torch2.11.0" / "constraints.txt").read_text().splitlines()
    ours = (ROOT / "constraints.txt").read_text().splitlines()
    loose = [line for line in ours if re.match("(torch|triton|setuptools)==", line)]
    assert len(loose) == 3
    kept = ["numpy<2.4" if line.startswith("numpy==") else line for line in ours if line not in loose]
    assert written == [*kept, "torch==2.11.0"]


@pytest.mark.parametrize(("target", "mark"), [("test-long", "-m long"), ("fuzz CASES=7", "-m fuzz")])
def test_what_takes_long_has_targets_of_its_own(commands, target, mark):
    lines = commands(*target.split())
    assert mark in lines
    assert ("NOBLE_FX_FUZZ_CASES=7" in lines) == target.startswith("fuzz")


def test_every_pin_holds_for_what_pyproject_asks(commands):
    """A range that excluded its own pin could not be installed."""
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for text in re.findall(r'"([\w-]+[<>=][^"]*)"', (ROOT / "pyproject.toml").read_text()):
        requirement = Requirement(text)
        if requirement.name in pins:
            assert requirement.specifier.contains(pins[requirement.name]), text

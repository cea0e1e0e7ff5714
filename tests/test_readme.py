"""Every code block of the README runs, in its order, as a reader would run it."""

import re
import shlex
from pathlib import Path

import pytest

from noble_fx import cli
from noble_fx.branches import activations
from tests.pages import headings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [body for language, body in BLOCKS if language == kind]


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(activations, "_USER", {})
    names: dict[str, object] = {}
    for body in blocks("python"):
        exec(compile(body, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "linear maps carry a branch" in printed
    assert "largest error" in printed
    assert "00_captured.py\n01_expose_linear.py\n02_insert_branch.py\n03_fuse_branch.py\n04_share_input.py\n" in printed


def test_the_explanation_shown_is_what_explain_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for body in blocks("python")[:5]:
        exec(compile(body, "README.md", "exec"), names)
    shown = next(body for body in blocks("text") if "linear maps carry a branch" in body)
    printed = capsys.readouterr().out
    assert shown.strip() in printed
    (picture,) = blocks("mermaid")
    assert picture in printed


COMMANDS = [line.split("#")[0].strip() for body in blocks("bash") for line in body.splitlines() if line.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_or_run(command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    if program == "make":  # they install and run for minutes; here, that the targets are there
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif arguments[0] == "-m":
        assert (ROOT / arguments[1].replace(".", "/")).with_suffix(".py").is_file() or (ROOT / arguments[1]).is_dir()
    else:
        assert program == "noble-fx"
        if arguments[0] == "export":
            arguments[arguments.index("--out") + 1] = str(tmp_path / "model.onnx")
        assert cli.main(arguments) == 0
        shown = {
            "kernels": "def bottleneck_forward(",
            "export": "largest error",
            "doctor": "agrees with float64",
            "bench": "by hand",
        }
        assert shown.get(arguments[0], "ffn.in") in capsys.readouterr().out


def test_links_lead_somewhere():
    for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", TEXT):
        if not target.startswith("https://"):
            assert not target or (ROOT / target).exists(), target
            assert not heading or heading in headings(ROOT / target if target else ROOT / "README.md"), heading
    for target in re.findall(r"`((?:docs|examples|benchmarks|tests)/[\w./]+)`", TEXT):
        assert (ROOT / target).exists(), target

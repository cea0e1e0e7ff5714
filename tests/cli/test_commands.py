"""What every command has, and what a shell is told at the end."""

import subprocess
import sys

import pytest

from noble_fx import cli, files
from noble_fx.cli import doctor, sites
from noble_fx.cli.commands import COMMANDS, make_parser


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"demo", "completion"}))
def test_every_answer_is_there_as_json(name):
    model = ["m"] if name in ("sites", "explain", "export") else []
    assert make_parser().parse_args([name, *model, "--json"]).json


def test_the_help_of_a_command_says_how_a_model_is_given(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["sites", "--help"])
    assert ended.value.code == 0
    assert "hf:CONFIG.json, a Hugging Face config" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["sites"], ["kernels", "--rank", "x"]])
def test_a_wrong_request_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: noble-fx" in capsys.readouterr().err


def test_an_interrupt_is_status_130(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sites, "run", interrupted)
    assert cli.main(["sites", "tests.models:tiny"]) == 130


def test_an_interrupted_export_leaves_no_file(monkeypatch, tmp_path):
    def interrupted(work, target):
        assert list(work.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_put", interrupted)
    out = tmp_path / "new" / "m.onnx"
    sizes = ["--rank", "2", "--select", "all", "--input", "3x8", "--verify", "no", "--out", str(out)]
    assert cli.main(["export", "tests.test_cli:small", *sizes]) == 130
    assert list(tmp_path.iterdir()) == []


def test_the_status_of_a_command_is_handed_on(monkeypatch):
    monkeypatch.setattr(doctor, "run", lambda args: 1)
    assert cli.main(["doctor"]) == 1


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys; from noble_fx import cli; sys.exit(cli.main(['sites', 'tests.models:tiny', '--json']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait() == 1
    assert "Traceback" not in said
    assert "BrokenPipe" not in said

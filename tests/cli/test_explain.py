"""`noble-fx explain` of models, files and folders, and of two of them; more in tests/test_cli.py."""

import json
import webbrowser

import pytest

import noble_fx
from noble_fx import cli
from tests.models import transformed


@pytest.fixture
def saved(tmp_path):
    return str(noble_fx.save(transformed("modules", select="ffn"), tmp_path / "saved"))


def test_a_folder(saved, capsys):
    assert cli.main(["explain", saved]) == 0
    assert "4 linear maps carry a branch; others are not listed there" in capsys.readouterr().out
    assert cli.main(["explain", saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is False


@pytest.mark.parametrize("second", [[], ["--diff"]])
def test_two_of_them(saved, second, capsys):
    model = "tests.models:tiny"
    assert cli.main(["explain", saved, *second, model, "--rank", "2", "--select", "ffn"]) == 0
    assert "changed blocks.*.fc1 ×2: rank 4 → 2" in capsys.readouterr().out
    assert cli.main(["explain", saved, *second, saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"] == []


def test_a_graph_from_example_inputs(saved, capsys, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.LlamaConfig(**sizes, vocab_size=32, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    asked = ["explain", f"hf:{tmp_path / 'config.json'}", "--rank", "4"]
    assert cli.main([*asked, "--input", "input_ids=1x4:int64"]) == 0
    assert "pass insert_branch" in capsys.readouterr().out
    assert cli.main(["explain", saved, "--input", "1x4"]) == 2
    assert "--input is for a model" in capsys.readouterr().err


def test_a_page(saved, capsys, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    page = tmp_path / "model.html"
    assert cli.main(["explain", saved, "--html", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "4 linear maps with a branch" in page.read_text(encoding="utf-8")
    assert shown == []
    assert cli.main(["explain", saved, "--html", str(page), "--open"]) == 0
    assert shown == [page.as_uri()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--open"], "--open shows the page that --html FILE writes"),
        (["--diff", "tests.models:tiny", "--html", "m.html"], "--html writes the page of one model"),
        (["--html", "m.txt"], "m.txt does not end in .html"),
    ],
)
def test_a_page_that_cannot_be(arguments, message, saved, capsys):
    assert cli.main(["explain", saved, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("command", "message"),
    [("export", "holds no model's code"), ("explain", "truncated or no ONNX file"), ("sites", "truncated or no ONNX")],
)
def test_a_file_that_is_none_of_ours(command, message, tmp_path, capsys):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    assert cli.main([command, str(tmp_path / "m.onnx")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_suffix(tmp_path, capsys):
    (tmp_path / "m.pt").write_bytes(b"")
    assert cli.main(["explain", str(tmp_path / "m.pt")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "must be package.module:factory or hf:CONFIG.json; sites and explain also take FILE.onnx, or a folder" in said
    )

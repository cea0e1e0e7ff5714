import json
from pathlib import Path

import pytest
import torch

import noble_fx
from noble_fx import cli
from noble_fx.branches import kinds
from noble_fx.model_spec import build_model
from tests.samples import long

ROOT = Path(__file__).parents[1]

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 99,
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    return f"hf:{path}"


def not_a_model():
    return 3


def test_sites_of_a_factory(capsys):
    assert cli.main(["sites", "tests.models:tiny", "--rank", "4"]) == 0
    out = capsys.readouterr().out
    assert "blocks.*.fc1" in out
    assert "an output head" in out


def test_sites_of_blocks(capsys):
    assert cli.main(["sites", "tests.models:tiny", "--rank", "4", "--scope", "block", "--json"]) == 0
    assert [site["fqn"] for site in json.loads(capsys.readouterr().out)] == ["blocks.0", "blocks.1"]
    assert cli.main(["sites", "tests.models:tiny", "--scope", "layer"]) == 2


def test_names_are_whole_in_a_pipe(capsys):
    cli.main(["sites", "tests.test_cli:deep", "--rank", "2", "--select", "all"])
    assert (
        "a_module_of_a_long_name.another_module_of_a_long_name.a_third_module_of_a_long_name" in capsys.readouterr().out
    )


def deep():
    from torch import nn

    model = nn.Linear(8, 8)
    for name in ("a_third_module_of_a_long_name", "another_module_of_a_long_name", "a_module_of_a_long_name"):
        holder = nn.Module()
        holder.add_module(name, model)
        model = holder
    return model


def test_an_error_is_never_markup(capsys):
    assert cli.main(["sites", "tests.models:[/red]\x1b[31m:smile:"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == r"noble-fx: module 'tests.models' has no '[/red]\x1b[31m:smile:'"


def test_sites_as_json(capsys, config):
    assert cli.main(["sites", config, "--rank", "0.25", "--select", "ffn", "--json"]) == 0
    sites = json.loads(capsys.readouterr().out)
    assert {site["rank"] for site in sites if site["selected"]} == {8}
    assert {site["role"] for site in sites if site["selected"]} == {"ffn.in", "ffn.gate", "ffn.out"}


def test_explain_with_a_budget(capsys, config):
    assert cli.main(["explain", config, "--rank", "10%", "--act", "gelu"]) == 0
    out = capsys.readouterr().out
    assert "14 of 15 linear maps carry a branch" in out
    assert "act: gelu" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sites", "nowhere"], "must be package.module:factory or hf:CONFIG.json"),
        (["sites", "no.such.module:make"], "cannot import 'no.such.module'"),
        (
            ["sites", "examples.pretrain.train_gpt:GPT"],
            "cannot be called without arguments (missing a required argument: 'width')",
        ),
        (["sites", "tests.models:nothing"], "has no 'nothing'"),
        (["sites", "tests.test_cli:not_a_model"], "gave int, not an nn.Module"),
        (["sites", "hf:nowhere.json"], "is not a Hugging Face config: there is no such file"),
        long(["sites", "hf:pyproject.toml"], "is not a Hugging Face config"),
        (["explain", "tests.models:tiny", "--rank", "0"], "rank=0 is not a rank"),
        (["export", "tests.models:tiny"], "export needs an example input: --input 2x16:int64"),
        (["export", "tests.models:tiny", "--input", "2xq"], "'2xq' is not [NAME=]SHAPE[:DTYPE]"),
        (
            ["export", "tests.models:tiny", "--rank", "4", "--input", "2x3:int64", "--out", "README.md/m.onnx"],
            "cannot write",
        ),
        (["explain", "nothing.onnx"], "nothing.onnx does not exist"),
        (["explain", "tests.models:tiny", "--rank", "4", "--select", "zzz"], "matches no linear layer"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))


def test_export_writes_verifies_and_reads_back(capsys, tmp_path):
    out = str(tmp_path / "m.onnx")
    arguments = ["export", "tests.test_cli:small", "--rank", "2", "--select", "all", "--input", "3x8", "--out", out]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "largest error" in text
    assert "fold_branch × 2" in text
    assert "join_up × 2" in text
    assert cli.main(arguments) == 2
    assert "exists; remove it" in " ".join(capsys.readouterr().err.split())
    more = ["--overwrite", "--json", "--no-fold", "--join", "no", "--dtype", "float16", "--verify", "warn"]
    assert cli.main([*arguments, *more]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passes"] == {}
    assert report["joined"] == "every matrix apart (join=False)"
    assert report["inputs"] == {"input": "FLOAT16 [batch,8]"}
    assert cli.main(["explain", out]) == 0
    assert "2 of 2 linear maps carry a branch" in capsys.readouterr().out
    assert cli.main(["sites", out, "--json"]) == 0
    assert [site["rank"] for site in json.loads(capsys.readouterr().out)] == [2, 2]


@pytest.mark.long
def test_export_of_saved_weights_from_a_config(capsys, config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 1}))
    torch.manual_seed(0)
    model = noble_fx.transform(build_model(config, device="cpu"), rank=4, select="ffn")
    noble_fx.save(model, tmp_path / "saved")
    out = tmp_path / "m.onnx"
    arguments = ["export", config, "--weights", str(tmp_path / "saved"), "--out", str(out), "--functions"]
    assert cli.main(arguments) == 0
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.ones(1, 3, dtype=torch.int64)).logits
    logits = noble_fx.runtime.OnnxModel(out)(torch.ones(1, 3, dtype=torch.int64))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert "fold_branch × 3" in capsys.readouterr().out


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(
        name in text for name in ("demo", "sites", "explain", "export", "kernels", "bench", "doctor", "completion")
    )


KERNELS = ["kernels", "--in", "64", "--out", "48", "--rank", "8"]


def test_kernels_prints_sources_as_they_are(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    assert cli.main([*KERNELS, "--kernel", "linear_up_forward"]) == 0
    source = noble_fx.kernels(in_features=64, out_features=48, rank=8).sources["linear_up_forward"]
    assert capsys.readouterr().out == source + "\n"


def test_kernels_for_a_target_and_a_folder(capsys, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    arguments = [*KERNELS, "--kernel", "linear_up_forward", "--target", "sm_90", "--write", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "sm_90" in out
    assert "registers" in out
    assert (tmp_path / "out" / "linear_up_forward.py").is_file()
    assert cli.main(arguments) == 2


@pytest.mark.parametrize("wrong", [["--act", "cosnot"], ["--dtype", "fp8"], ["--target", "sm_1"], ["--rank", "999"]])
def test_kernels_of_what_cannot_be(wrong, capsys):
    assert cli.main([*KERNELS, *wrong]) == 2
    assert "noble-fx: " in capsys.readouterr().err


def test_the_demo_says_what_it_cannot_do(capsys):
    assert cli.main(["demo", "--steps", "0"]) == 2
    assert "steps=0 must be at least 1" in capsys.readouterr().err


def with_an_unfused_kind():
    noble_fx.register_branch("cli_scale", ScaleBranch)
    return small()


class ScaleBranch(noble_fx.Branch):
    kind = "cli_scale"

    def __init__(self, *sizes_and_config):
        super().__init__(*sizes_and_config)
        self.scale = torch.nn.Parameter(torch.empty(self.out_features))
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.ones_(self.scale)

    def forward(self, x, rows=None):
        return x.mean(-1, keepdim=True) * (self.scale if rows is None else self.scale[rows])


def test_a_kind_of_branch_by_its_name(capsys, monkeypatch):
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    arguments = ["tests.test_cli:with_an_unfused_kind", "--rank", "2", "--select", "all", "--branch", "cli_scale"]
    assert cli.main(["explain", *arguments]) == 0
    assert "branches of kind 'cli_scale' have no fused form" in capsys.readouterr().out
    assert cli.main(["sites", "tests.test_cli:small", "--branch", "nobel"]) == 2
    assert "branch='nobel' is unknown; nearest: 'noble'" in " ".join(capsys.readouterr().err.split())

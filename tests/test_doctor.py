"""`noble-fx doctor`: what it finds, and that it finds a layer that is wrong."""

import dataclasses
import io
import json
import os
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

from noble_fx import cli, doctor
from noble_fx.layers import fused
from noble_fx.tables import as_text

PACKAGE = Path(doctor.__file__).parent


@pytest.fixture(scope="module")
def found():
    return doctor.examine()


def test_versions_are_those_that_are_there(found):
    assert found.versions["torch"] == torch.__version__
    assert found.versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert {"noble-fx", "triton", "onnx", "onnxruntime", "transformers"} <= set(found.versions)


def test_a_package_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: "unknown" if name.startswith("onnxr") else "1")
    assert doctor._versions()["onnxruntime"] == "not installed"
    assert "onnxruntime-gpu" not in doctor._versions()
    monkeypatch.setattr(doctor, "version_of", lambda name: "unknown" if name == "onnxruntime" else "1")
    assert (doctor._versions()["onnxruntime-gpu"], "onnxruntime" in doctor._versions()) == ("1", False)


def test_kernels_by_dtype(found):
    rows = {row.dtype: row for row in found.kernels}
    for name in ("fp32", "bf16", "fp16"):
        assert {"sm_80", "sm_90", "gfx942"} <= set(rows[name].targets)
        assert rows[name].reason == ""
    assert rows["float64"].targets == ()
    assert "they take float32" in rows["float64"].reason


def test_without_triton_no_kernel_is_said_to_run(monkeypatch):
    monkeypatch.setattr("noble_fx.ops.available.have_triton", lambda: False)
    row = doctor._kernels(torch.float32)
    assert "sm_90" in row.targets  # text needs no Triton
    assert row.reason == "not run here: triton is not installed"


def test_the_variables_that_are_set(monkeypatch, found):
    monkeypatch.setenv("NOBLE_FX_TUNE", "0")
    monkeypatch.setenv("NOBLE_FX_CACHES", "[b]/tmp\n")
    variables = doctor.examine().variables
    assert (variables["NOBLE_FX_TUNE"], variables["NOBLE_FX_CACHES"]) == ("0", "[b]/tmp\n")
    text = as_text(dataclasses.replace(found, variables=variables), 200)
    assert r"[b]/tmp\n – nothing reads it; nearest: 'NOBLE_FX_CACHE'" in text
    assert re.search(r"^NOBLE_FX_TUNE +0$", text, re.MULTILINE)


def test_all_variables_that_are_read_are_known():
    sources = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "doctor.py")
    assert set(re.findall(r"\bNOBLE_FX_[A-Z]+", sources)) == set(doctor.VARIABLES)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_looking_at_the_cache_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path / "a" / "b"))
    assert doctor._cache() == (str(tmp_path / "a" / "b"), "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_written(place, tmp_path, monkeypatch, found):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path / place))
    cache, problem = doctor._cache()
    assert "irectory" in problem
    text = as_text(dataclasses.replace(found, cache=cache, cache_problem=problem), 300)
    assert f"{place} cannot be written: {problem}; set NOBLE_FX_CACHE to a folder that can be" in text


def test_nobodys_home_is_no_cache(monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", "~nobody_has_it/x")
    name, problem = doctor._cache()
    assert name == "none"
    assert "home" in problem


# --- GPUs ------------------------------------------------------------------------------------------------------------


def test_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert doctor._gpus() == ((), "this torch is built without CUDA and ROCm")
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: warnings.warn("the driver is too old", stacklevel=1))
    assert doctor._gpus() == ((), "torch, built for CUDA 99.1, finds none; the driver is too old")

    def broken():
        raise RuntimeError("no driver answers")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert doctor._gpus() == ((), "no driver answers")


@pytest.mark.parametrize(("known", "reason"), [(None, "it is older than sm_80"), ("a GPU", "")])
def test_a_gpu_and_whether_kernels_run_on_it(known, reason, monkeypatch, found):
    properties = types.SimpleNamespace(name="Old [b]", major=7, minor=5, total_memory=2**34)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(doctor, "gpu_of", lambda device: known)
    gpu = doctor._gpu(0)
    assert gpu == doctor.Gpu("Old [b]", "sm_75", 16.0, reason)
    text = as_text(dataclasses.replace(found, gpus=(gpu,)), 200)
    assert "Old [b], sm_75, 16 GiB" in text
    assert (f"no generated kernels: {reason}" if reason else "runs generated kernels") in text


# --- the layer -------------------------------------------------------------------------------------------------------


def test_the_layer_agrees_and_says_which_way_it_ran(found):
    check = found.checks[0]
    assert (check.device, check.dtype, check.way) == ("cpu", "fp32", "noble_fx::linear in PyTorch's operators")
    assert 0 < check.error < 1e-5
    assert found.agrees


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_agree_within_their_digits(dtype):
    check = doctor._check("cpu", dtype)
    assert check.bound / 100 < check.error <= check.bound


def test_nothing_is_drawn_from_the_generators():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    doctor._check("cpu", torch.float32)
    assert torch.equal(torch.rand(3), expected)


def test_a_layer_that_is_wrong_is_found(monkeypatch, capsys):
    right = fused.call
    monkeypatch.setattr(fused, "call", lambda *operands: right(*operands) * 1.001)
    assert cli.main(["doctor"]) == 1
    assert "DOES NOT AGREE with float64: largest error 1.0e-03 (bound 1e-04)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_agree(value, monkeypatch):
    right = fused.call
    monkeypatch.setattr(fused, "call", lambda *operands: right(*operands) * value)
    check = doctor._check("cpu", torch.float32)
    assert (check.agrees, check.error, check.problem) == (False, None, "ArithmeticError: a result is not finite")


def test_a_layer_that_cannot_run_is_told_with_the_error(monkeypatch, capsys):
    def fail(*operands):
        raise RuntimeError("[b]a driver\x1b[31m")

    monkeypatch.setattr(fused, "call", fail)
    assert cli.main(["doctor"]) == 1
    assert r"failed: RuntimeError: [b]a driver\x1b[31m" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["agrees"], said["checks"][0]["error"]) == (False, None)


@pytest.mark.parametrize(
    ("gpu", "refusal", "way"),
    [
        (None, None, "noble_fx::linear in PyTorch's operators: no kernels run on this GPU"),
        ("a GPU", "refused on cuda:0: why", "noble_fx::linear in PyTorch's operators: refused on cuda:0: why"),
        ("a GPU", None, "generated kernels"),
    ],
)
def test_the_way_on_a_gpu(gpu, refusal, way, monkeypatch):
    monkeypatch.setattr(doctor, "gpu_of", lambda device: gpu)
    monkeypatch.setattr(doctor, "why_no_kernel", lambda *asked: refusal)
    model, *_ = doctor._layers("cpu", torch.float32)
    assert doctor._way(model, "cuda:0", torch.float32) == way


def test_a_branch_without_the_operator_is_told():
    _, exact, *_ = doctor._layers("cpu", torch.float32)
    assert doctor._way(exact, "cpu", torch.float64).startswith("modules: ")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch, found):
    monkeypatch.setattr("noble_fx.cli.doctor.examine", lambda: found)
    return found


def test_the_command_prints_the_table(known, capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^torch +{re.escape(torch.__version__)} *$", out, re.MULTILINE)
    assert "agrees with float64" in out
    assert "\x1b" not in out


def test_json_says_the_same(known, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(json.dumps(known.to_dict()))
    assert said["agrees"] is True
    assert said["checks"][0]["agrees"] is True


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("no_color", [True, False])
def test_colours_are_for_a_terminal_that_wants_them(no_color, known, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1") if no_color else monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert cli.main(["doctor"]) == 0
    assert ("\x1b[32m" in sys.stdout.getvalue()) is not no_color


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_a_reader_that_has_gone_is_no_error_to_print(arguments, known, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        try:
            status = cli.main(arguments)
        except SystemExit as left:  # rich's own way
            status = left.code
        assert status == 1
    assert capfd.readouterr().err == ""

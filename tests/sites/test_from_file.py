"""A file says what it is, and what is no such file is named."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import noble_fx
from noble_fx import ExportError
from tests.models import tokens, transformed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    model = transformed("modules")
    noble_fx.export_onnx(model, (tokens(),), path, verify=False, join="down")
    return model, path


def test_sites_are_those_of_the_live_model(written):
    model, path = written
    assert noble_fx.sites(path) == noble_fx.sites(str(path)) == noble_fx.sites(model)


def test_explain_reads_the_account(written):
    model, path = written
    explanation = noble_fx.explain(path)
    text = str(explanation)
    assert "Tiny in model.onnx: 12 of 13 linear maps carry a branch" in text
    assert "pass join_down: 12 rewrites" in text
    assert "pass fold_branch: 12 rewrites" in text
    assert f"torch {torch.__version__}" in text
    assert "noble_fx::linear" not in text
    assert explanation.base_params == noble_fx.explain(model).base_params
    assert explanation.to_dict()["sites"] == [site.to_dict() for site in noble_fx.sites(model)]


def test_files_that_are_not_ours(written, tmp_path):
    _, path = written
    raw = path.read_bytes()
    cases = {"half.onnx": raw[: len(raw) // 2], "empty.onnx": b"", "text.onnx": b"not a model at all"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        for read in (noble_fx.sites, noble_fx.explain):
            with pytest.raises(ExportError, match=f"{name} is truncated or no ONNX file"):
                read(tmp_path / name)
    with pytest.raises(ExportError, match="does not exist"):
        noble_fx.sites(tmp_path / "nothing.onnx")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Cos", ["x"], ["y"])], "g", [value], [other])
    plain = helper.make_model(graph)
    onnx.save(plain, tmp_path / "plain.onnx")
    with pytest.raises(ExportError, match=r"plain.onnx was not written by noble_fx.export_onnx"):
        noble_fx.explain(tmp_path / "plain.onnx")
    for value, message in (("{", "cannot be read"), ('{"format": 99}', "has format 99; this version reads 1")):
        helper.set_model_props(plain, {"noble_fx": value})
        onnx.save(plain, tmp_path / "plain.onnx")
        with pytest.raises(ExportError, match=message):
            noble_fx.sites(tmp_path / "plain.onnx")

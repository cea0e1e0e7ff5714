"""What the package uses of torch's private parts does what is said of it, whatever the release."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch._inductor.utils import fresh_cache

import noble_fx
from noble_fx import torch_versions
from tests.one_rank import first_of_two, fsdp1

PACKAGE = Path(__file__).parents[1] / "noble_fx"
# Private names that torch's own documentation of backends uses.
NAMED_BY_TORCH = {
    "torch._dynamo.lookup_backend",
    "torch._dynamo.list_backends",
    "torch._dynamo.register_backend",
    "_pytree",
}


def test_private_parts_of_torch_are_used_in_two_files():
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("torch_versions.py", "torch_state.py"):
            text = path.read_text(encoding="utf-8")
            names = set(re.findall(r"\btorch\._(?!_)\w+(?:\.\w+)*|(?<=from )torch[\w.]*\._\w+", text))
            names |= set(re.findall(r"^from torch[\w.]* import .*\b(_[a-z]\w*)", text, re.MULTILINE))
            assert names <= NAMED_BY_TORCH, f"{path.name}: {names - NAMED_BY_TORCH} belongs into torch_versions.py"


def test_the_release_is_one_that_pyproject_allows():
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    low, high = re.search(r'"torch>=2\.(\d+),<2\.(\d+)"', pyproject).groups()
    assert (2, int(low)) <= torch_versions.RELEASE < (2, int(high))


def test_the_exporters_library_is_read_once():
    pytest.importorskip("onnxscript")
    from torch.onnx._internal.exporter import _registration

    read = _registration.onnxscript_apis.get_torchlib_ops
    with torch_versions.onnx_library_read_once():
        first = _registration.onnxscript_apis.get_torchlib_ops()
    with torch_versions.onnx_library_read_once():
        assert _registration.onnxscript_apis.get_torchlib_ops() is first
    assert _registration.onnxscript_apis.get_torchlib_ops is read
    assert [(meta.qualified_name, meta.function) for meta in first] == [
        (meta.qualified_name, meta.function) for meta in read()
    ]


def test_a_file_with_bodies_reads_it_once_too(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    from torch.onnx._internal.exporter import _registration

    torch_versions._answered_once.cache_clear()
    read, count = _registration.onnxscript_apis.get_torchlib_ops, []
    counted = lambda: count.append(1) or read()  # noqa: E731
    monkeypatch.setattr(_registration.onnxscript_apis, "get_torchlib_ops", counted)
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), rank=2, act="relu", select="all")
    noble_fx.export_onnx(model, (torch.randn(3, 8),), tmp_path / "m.onnx", functions=True)
    assert [site.selected for site in noble_fx.sites(tmp_path / "m.onnx")] == [True]
    assert count == [1]


def test_equal_nodes_become_one():
    graph = fx.symbolic_trace(lambda x: x.cos() + x.cos()).graph
    merged = torch_versions.merge_equal_nodes(graph)
    assert [node.target for node in merged.nodes].count("cos") == 1
    x = torch.randn(3)
    assert torch.equal(fx.GraphModule(nn.Module(), merged)(x), x.cos() + x.cos())


def test_decompositions_leave_out_what_there_is_not():
    table = torch_versions.decompositions(["silu", "no_such_operator"])
    assert torch.ops.aten.silu.default in table
    assert all(operator._schema.name == "aten::silu" for operator in table)


def test_a_compiled_module_is_recognised():
    layer = nn.Linear(2, 2)
    assert not torch_versions.is_compiled(layer)
    assert torch_versions.is_compiled(torch.compile(layer, backend="eager"))


def test_tf32_is_read_whichever_way_it_was_set():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert torch_versions.tf32_products()
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert not torch_versions.tf32_products()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_inductor_has_the_parts_that_the_backend_needs():
    parts = torch_versions.inductor()
    assert hasattr(parts.config, parts.first_pass)
    assert parts.list_mode_options("max-autotune")


def test_a_graph_pass_is_one_to_inductor():
    runs = []
    graph_pass = torch_versions.graph_pass(runs.append, lambda: "mine")
    graph = fx.Graph()
    graph_pass(graph)
    assert runs == [graph]
    assert graph_pass.uuid() == "mine"
    with fresh_cache(), torch._inductor.config.patch({torch_versions.inductor().first_pass: graph_pass}):
        torch.compile(nn.Linear(3, 3))(torch.ones(2, 3))
    assert len(runs) >= 2  # torch 2.11 runs it over another graph as well


def test_what_was_traced_on_a_thread_that_ended_is_no_trouble():
    """A process of its own, because what goes wrong in torch 2.11 is a crash."""
    code = """
import threading, torch, noble_fx
from torch._subclasses import FakeTensorMode

def trace():
    with FakeTensorMode():
        torch.empty(2)

thread = threading.Thread(target=trace)
thread.start()
thread.join()
torch.compile(torch.nn.Linear(2, 2), backend="aot_eager")(torch.ones(2, 2)).sum().backward()
print("compiled")
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert answer.stdout.strip() == "compiled", answer.stderr[-2000:]


class Deciding(nn.Module):
    def forward(self, x):
        return x.cos() if x.sum() > 0 else x


def test_an_error_about_values_is_told_from_others():
    with pytest.raises(Exception, match="data-dependent") as about_values:
        torch.export.export(Deciding(), (torch.ones(3),), strict=False)
    assert torch_versions.decides_on_values(about_values.value)
    with pytest.raises(RuntimeError) as about_shapes:
        torch.export.export(nn.Linear(3, 3), (torch.ones(2, 4),), strict=False)
    assert not torch_versions.decides_on_values(about_shapes.value)


def test_an_error_about_shapes_says_so():
    shapes = {"input": {1: torch.export.Dim("width")}}
    with pytest.raises(Exception, match="width") as error:
        torch.export.export(nn.Linear(3, 3), (torch.ones(2, 3),), dynamic_shapes=shapes, strict=False)
    assert any(word in str(error.value) for word in torch_versions.ABOUT_SHAPES)


def test_a_functions_name_leads_back_to_it():
    assert torch_versions.qualified_name(torch.nn.functional.gelu) in ("torch.nn.functional.gelu", "torch._C._nn.gelu")


def test_shapes_before_sharding_are_those_that_fsdp1_cut():
    model = nn.Sequential(nn.Linear(3, 5))
    assert torch_versions.shapes_before_sharding(model) == {}
    with first_of_two():
        sharded = fsdp1(model)
        found = {
            name: torch_versions.shapes_before_sharding(sharded)[id(p)] for name, p in sharded.module.named_parameters()
        }
        assert found == {"0.weight": (5, 3), "0.bias": (5,)}

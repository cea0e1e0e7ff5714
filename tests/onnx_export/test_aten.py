"""Programs that run where nobody has heard of this package."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.export import Dim

import noble_fx
from noble_fx import ExportError
from tests.captures.test_export import exported
from tests.models import loud, tiny, tokens
from tests.samples import long

IN_ANOTHER_PROCESS = """
import sys
import torch

program = torch.export.load(sys.argv[1])
x, expected = torch.load(sys.argv[2])
run = program.module()
if sys.argv[3] == "compiled":
    run = torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(program))
torch.testing.assert_close(run(x), expected, atol=1e-5, rtol=1e-4)
assert "noble_fx" not in sys.modules
print("the same")
"""


def made(**settings) -> nn.Module:
    return loud(noble_fx.transform(tiny(layers=1), rank=4, seed=0, **settings))


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("settings", [{}, long({"fold": False}), {"join": "up"}], ids=str)
def test_aten_alone_and_the_same_at_any_batch_and_length(settings):
    model = made()
    before = copy.deepcopy(model.state_dict())
    program = noble_fx.export(model, (tokens(),), **settings)
    assert all(name.startswith("aten.") or "getitem" in name for name in operators(program)), operators(program)
    for shape in ((2, 5), (3, 7)):
        torch.testing.assert_close(program.module()(tokens(*shape)), model(tokens(*shape)), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.head.weight.requires_grad


def test_a_model_that_runs_graphs_is_exported_too():
    model = exported(tiny(layers=1), select="fc1")
    program = noble_fx.export(model, (tokens(),), verify=False)
    assert not any("noble_fx" in name for name in operators(program))
    torch.testing.assert_close(program.module()(tokens(3, 4)), model(tokens(3, 4)), atol=1e-5, rtol=1e-4)


def test_base_weights_keep_their_names_unless_they_are_joined():
    model = made()
    names = set(noble_fx.export(model, (tokens(),), verify=False).state_dict)
    assert {name for name, _ in noble_fx.remove(model).named_parameters()} <= names


def test_a_dtype_and_sizes_that_are_asked_for():
    program = noble_fx.export(made(), (tokens(),), dtype=torch.float64, dynamic_shapes={"idx": {0: Dim("batch")}})
    assert program.module()(tokens(3, 5)).dtype == torch.float64
    with pytest.raises(Exception, match="5"):
        program.module()(tokens(3, 6))


def rows() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    return loud(noble_fx.transform(model, rank=2, select=".*", seed=0))


def other_process(tmp_path, how, model, x, **settings):
    torch.export.save(noble_fx.export(model, (torch.cat([x, x]),), **settings), tmp_path / "m.pt2")
    torch.save((x, model(x).detach()), tmp_path / "expected.pt")
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, tmp_path / "m.pt2", tmp_path / "expected.pt", how]
    answer = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    return answer.stdout.strip() or answer.stderr[-2000:]


@pytest.mark.parametrize("join", [False, long("up")])
def test_another_process_loads_and_runs_it_without_this_package(tmp_path, join):
    assert other_process(tmp_path, "loaded", rows(), torch.randn(5, 8), join=join) == "the same"


@pytest.mark.long
def test_another_process_compiles_it_ahead_of_time(tmp_path):
    assert other_process(tmp_path, "compiled", made(), tokens(3, 7)).endswith("the same")


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (made, {"args": ()}, "needs example inputs"),
        (made, {"args": (tokens(), 1, 2)}, "do not fit forward"),
        (made, {"args": (tokens(),), "join": "side"}, "join='side' is unknown"),
        (made, {"args": (tokens(),), "fold": 1}, "fold=1 must be True or False"),
        (made, {"args": (tokens(),), "dtype": torch.int8}, "dtype=torch.int8 cannot be exported"),
        (lambda: 5, {"args": (tokens(),)}, "noble_fx.export takes an nn.Module, not int"),
        (lambda: made().to("meta"), {"args": (tokens(),)}, "on the meta device"),
    ],
)
def test_what_cannot_be_is_one_error(model, given, message):
    with pytest.raises(ExportError, match=message):
        noble_fx.export(model(), **given)


def test_a_program_that_is_too_far_off_is_no_answer(monkeypatch):
    monkeypatch.setattr("noble_fx.onnx_export.aten.difference", lambda tensor, result: (1.0, 1.0))
    with pytest.raises(ExportError, match=r"differs from the model by 1.00e\+00 at .*allowed: 0.0001"):
        noble_fx.export(rows(), (torch.randn(2, 8),))
    noble_fx.export(rows(), (torch.randn(2, 8),), verify=False)

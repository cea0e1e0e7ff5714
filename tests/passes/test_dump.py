"""NOBLE_FX_DUMP: what is written, when, and that nothing that goes wrong with it is felt."""

import ast
import logging
import threading

import pytest
import torch
from torch import fx, nn

import noble_fx
from noble_fx.passes import dump
from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Pipeline, rule, run_passes
from tests.models import Tiny, loud, tiny, tokens, transformed


@rule(torch.relu)
def to_gelu(build, node, graph):
    """relu(x)  ->  gelu(x)"""
    return build.call(nn.functional.gelu, *node.args)


@rule(nn.functional.gelu)
def refuse(build, node, graph):
    """gelu(x)  ->  gelu(x)"""
    return Skip("it is fine\n\x1b[31m")


@rule(nn.functional.gelu)
def fail(build, node, graph):
    """gelu(x)  ->  nothing"""
    raise RuntimeError("a pass that fails")


@rule(torch.sin)
def unused(build, node, graph):
    """sin(x)  ->  sin(x)"""


def traced() -> fx.GraphModule:
    return fx.GraphModule(nn.Module(), fx.symbolic_trace(lambda x: torch.relu(x) + 1).graph)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(dump.VARIABLE, str(tmp_path / "deep" / "dump"))
    monkeypatch.setattr(dump, "_numbers", dump.itertools.count(1))
    dump._warn.cache_clear()
    return tmp_path / "deep" / "dump"


def written(folder) -> dict[str, list[str]]:
    """The files in each subfolder, all of which are Python."""
    for file in folder.glob("*/*"):
        ast.parse(file.read_text(encoding="utf-8"))
    return {sub.name: sorted(file.name for file in sub.iterdir()) for sub in sorted(folder.iterdir())}


def test_every_pass_that_looked_at_something_is_a_file(folder):
    run_passes(traced(), Pipeline((to_gelu, unused, refuse), name="mine"))
    name = "001_mine_GraphModule"
    assert written(folder) == {name: ["00_captured.py", "01_to_gelu.py", "02_refuse.py"]}
    before, after, last = (path.read_text(encoding="utf-8") for path in sorted((folder / name).iterdir()))
    assert before.startswith("# GraphModule, before the passes 'mine'\n\ndef forward(self, x):\n")
    assert "torch.relu(x)" in before
    assert after.startswith("# to_gelu: relu(x)  ->  gelu(x)\n#   relu: relu(x)  ->  gelu(x)\n\ndef forward(")
    assert "torch.relu(x)" not in after
    assert last.splitlines()[1] == r"#   gelu: stays, it is fine\n\x1b[31m"


def test_nothing_is_written_where_nothing_is_set(folder, monkeypatch):
    for empty in (None, ""):
        monkeypatch.delenv(dump.VARIABLE) if empty is None else monkeypatch.setenv(dump.VARIABLE, empty)
        run_passes(traced(), [to_gelu])
    assert not folder.exists()


def test_until_stable_and_cleanup_are_written_in_the_order_in_which_they_ran(folder):
    run_passes(traced(), Pipeline((refuse, to_gelu), cleanup=(refuse,), until_stable=True))
    (files,) = written(folder).values()
    assert files == ["00_captured.py", "01_to_gelu.py", "02_refuse.py", "03_refuse.py"]


def test_what_was_done_before_an_error_is_there(folder):
    with pytest.raises(RuntimeError, match="a pass that fails"):
        run_passes(traced(), [to_gelu, fail])
    assert list(written(folder).values()) == [["00_captured.py", "01_to_gelu.py"]]


def test_numbers_go_on_after_another_process(folder, monkeypatch):
    for _ in range(2):
        monkeypatch.setattr(dump, "_numbers", dump.itertools.count(1))
        run_passes(traced(), [to_gelu])
    assert list(written(folder)) == ["001_passes_GraphModule", "002_passes_GraphModule"]


def test_threads_do_not_meet(folder):
    threads = [threading.Thread(target=run_passes, args=(traced(), [to_gelu])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(files) for files in written(folder).values()] == [2] * 8


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["file", "below", "nul", "home"])
def test_a_folder_that_cannot_be_written_is_one_warning(where, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("mine")
    places = {"file": tmp_path / "file", "below": tmp_path / "file" / "x", "home": "~nobody_has_it/x"}
    monkeypatch.setattr(dump.os, "environ", {dump.VARIABLE: str(places.get(where, "a\0b"))})
    dump._warn.cache_clear()
    with caplog.at_level(logging.WARNING, logger=dump.__name__):
        graphs = [traced(), traced()]
        for graph_module in graphs:
            assert len(run_passes(graph_module, [to_gelu])) == 1
    assert "gelu" in graphs[1].code
    (record,) = [record for record in caplog.records if record.name == dump.__name__]
    assert "NOBLE_FX_DUMP=" in record.getMessage()
    assert "cannot be written (" in record.getMessage()
    assert "unset it" in record.getMessage()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "mine")]


def test_a_disk_that_is_full_leaves_no_half(folder, monkeypatch, caplog):
    def full(path, text, **settings):
        if "01" in path.name:
            raise OSError(28, "No space left on device")
        path.touch()

    monkeypatch.setattr(dump.Path, "write_text", full)
    run_passes(traced(), [to_gelu])
    assert list(folder.iterdir()) == []
    assert "No space left on device" in caplog.text


def test_a_graph_that_torch_cannot_write_is_said_to_be_one(folder, monkeypatch):
    graph_module = traced()
    code = fx.Graph.python_code

    def cannot(*args, verbose=False, **settings):
        if verbose:
            raise RuntimeError("no\ntext")
        return code(*args, verbose=verbose, **settings)

    monkeypatch.setattr(fx.Graph, "python_code", cannot)
    run_passes(graph_module, [to_gelu])
    (file,) = folder.glob("*/01_to_gelu.py")
    assert file.read_text().splitlines()[-1] == r"# torch cannot write this graph as Python: no\ntext"


def test_a_class_name_is_no_path(folder):
    kind = type("../[b]x" + "y" * 99, (fx.GraphModule,), {})
    run_passes(kind(nn.Module(), traced().graph), [to_gelu])
    (name,) = written(folder)
    assert name.startswith("001_passes_")
    assert len(name) < 70


# --- the captures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_captured_graphs(capture, folder):
    examples = {"example_inputs": (tokens(),)} if capture == "export" else {}
    noble_fx.transform(tiny(layers=1), rank=4, capture=capture, **examples)
    names = written(folder)
    assert len(names) == (2 if capture == "export" else 1)
    for name, files in names.items():
        assert "_train_" in name
        assert [file[3:-3] for file in files][:2] == [
            "captured",
            "expose_linear" if capture == "fx" else "expose_product",
        ]
        text = (folder / name / files[-1]).read_text()
        assert files[-1].endswith("_share_input.py")
        assert "torch.ops.noble_fx.linear_group.default(" in text
        assert "torch.ops.noble_fx" not in (folder / name / files[0]).read_text()


class Broken(Tiny):
    """A graph break between the blocks."""

    def forward(self, idx):
        x = self.blocks[0](self.embed(idx))
        torch._dynamo.graph_break()
        return self.head(self.blocks[1](x))


def test_compiled_graphs(folder):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = loud(noble_fx.transform(Broken().eval(), rank=4, capture="modules", seed=0))
    compiled = torch.compile(model, backend="noble_fx", options={"then": "eager"})
    torch.testing.assert_close(compiled(tokens()), model(tokens()))
    names = written(folder)
    assert list(names) == ["001_compiled_GraphModule", "002_compiled_GraphModule"]
    assert set(map(tuple, names.values())) == {("00_captured.py", "01_share_input.py")}
    last = (folder / "002_compiled_GraphModule" / "01_share_input.py").read_text()
    assert "linear_group" in last
    assert ": stays, " in last  # with why the others are alone


def test_the_model_is_the_same_with_it_and_without(folder, monkeypatch):
    dumped = transformed("fx")
    monkeypatch.delenv(dump.VARIABLE)
    plain = transformed("fx")
    assert dumped.code == plain.code
    assert torch.equal(dumped(tokens()), plain(tokens()))

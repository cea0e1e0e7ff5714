import operator
import pickle

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.passes import listing
from noble_fx.passes.history import History
from noble_fx.passes.listing import Listings, block_name, lines_of, path_text, read_path
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import rule, run_passes
from tests.models import compiled_programs, tiny, tokens, transformed


def texts(function) -> list[str]:
    return [line.text for line in lines_of(fx.symbolic_trace(function).graph)]


def test_lines_read_as_python():
    def forward(x, y):
        z = torch.relu(x + y) @ y / 2
        a, b = z.chunk(2, dim=-1)
        return {"a": F.gelu(a)[..., 1:, ::2], "b": (b, [None, 1.5])}

    assert texts(forward) == [
        "def forward(x, y):",
        "add = x + y",
        "relu = torch.relu(add)",
        "matmul = relu @ y",
        "truediv = matmul / 2",
        "chunk = truediv.chunk(2, dim=-1)",
        "getitem = chunk[0]",
        "getitem_1 = chunk[1]",
        "gelu = F.gelu(getitem)",
        "getitem_2 = gelu[(Ellipsis, 1:, ::2)]",
        "return {'a': getitem_2, 'b': (getitem_1, [None, 1.5])}",
    ]


def test_a_parameter_stands_where_it_is_read_and_a_sigma_once():
    program = noble_fx.programs(transformed("fx"))[0]
    line = next(line for line in lines_of(program.graph_module.graph) if "fc1.weight" in line.text)
    fc1 = "self.blocks[0].fc1"
    assert line.block == "blocks.0"
    assert line.text.startswith(f"{line.node} = linear(add, {fc1}.weight, {fc1}.bias, {fc1}.noble.down, None, ")
    assert f"{fc1}.noble.up, [*{fc1}.noble.act], 'cosnet-" in line.text


def test_the_graphs_of_dynamo_read_alike():
    torch._dynamo.reset()
    model = noble_fx.transform(tiny(layers=1), rank=4, seed=0, capture="modules")
    torch.compile(model, backend="noble_fx", options={"then": "eager"})(tokens())
    (program,) = compiled_programs(model)
    lines = lines_of(program.graph_module.graph)
    assert lines[0].text == "def forward(l_idx_):"
    (fc1,) = [line for line in lines if "self.blocks[0].fc1.weight" in line.text]
    assert "self.blocks[0].fc1.noble.down" in fc1.text
    assert "[*self.blocks[0].fc1.noble.act]" in fc1.text
    assert fc1.block == "blocks.0"
    assert not [line for line in lines if "functorch" in line.text]


def test_many_inputs_are_counted():
    graph = fx.Graph()
    inputs = [graph.placeholder(f"x{i}") for i in range(15)]
    graph.output(tuple(inputs))
    assert lines_of(graph)[0].text == f"def forward({', '.join(f'x{i}' for i in range(12))}, … 3 more):"


@pytest.mark.parametrize(
    ("path", "block"),
    [("layers.0.mlp.experts.3", "layers.0"), ("0", "0"), ("model.norm", ""), ("a.12.b", "a.12"), ("", "")],
)
def test_a_block_is_the_outermost_numbered_module(path, block):
    assert block_name(path) == block


def test_paths():
    assert path_text("model.layers.0.q_proj") == "self.model.layers[0].q_proj"
    graph = fx.Graph()
    lifted = graph.placeholder("L_self_modules_layers_modules_0_parameters_weight_")
    assert read_path(lifted) == "layers.0.weight"
    assert read_path(graph.placeholder("x")) == ""


# --- kept while passes run -------------------------------------------------------------------------------------------


@rule(operator.add)
def to_mul(build, node, graph):
    """a + b  ->  a * b"""
    return build.call(operator.mul, *node.args)


def traced() -> fx.GraphModule:
    return fx.GraphModule(nn.Module(), fx.symbolic_trace(lambda x: torch.relu(x) + 1).graph)


def test_a_history_keeps_the_lines_where_that_is_asked_for():
    graph = traced()
    history = run_passes(graph, [to_mul, to_mul], listed=True)
    assert [each.after for each in history.listings] == ["", "to_mul"]
    before, after = ([line.text for line in each.lines] for each in history.listings)
    assert before == ["def forward(x):", "relu = torch.relu(x)", "add = relu + 1", "return add"]
    assert after == ["def forward(x):", "relu = torch.relu(x)", "mul = relu * 1", "return mul"]
    assert history.listings[0].lines[1] is history.listings[1].lines[1]
    assert run_passes(traced(), [to_mul]).listings == ()


def test_histories_one_after_the_other_keep_every_state_once():
    graph = traced()
    first = run_passes(graph, [to_mul], listed=True)
    both = first + run_passes(graph, PIPELINES["train"], listed=True)
    assert [each.after for each in both.listings] == ["", "to_mul"]
    assert (History() + first).listings == first.listings
    assert pickle.loads(pickle.dumps(both)).listings == both.listings


def test_a_large_graph_is_not_kept(monkeypatch):
    monkeypatch.setattr(listing, "LIMIT", 3)
    assert Listings(traced().graph).kept == []


def test_every_capture_keeps_the_graph_as_it_was_captured():
    (program,) = noble_fx.programs(transformed("fx"))
    first, *_, last = program.history.listings
    assert any("self.blocks[0].q_proj(" in line.text for line in first.lines)
    assert last.lines == lines_of(program.graph_module.graph)
    (looked,) = noble_fx.programs(transformed("modules"))
    assert looked.history.listings[0].lines == first.lines

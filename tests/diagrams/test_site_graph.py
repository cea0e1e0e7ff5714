"""The graph of sites: what it says, and that GraphML can hold all of it."""

import networkx as nx
import pytest
from torch import nn

import noble_fx
from noble_fx.diagrams.site_graph import identifier, site_graph
from tests.diagrams.names import NAMES, explanation
from tests.models import Gamma, tiny, transformed


def kept(graph: nx.DiGraph, path) -> nx.DiGraph:
    """The graph after a way through a file, without the two entries that networkx adds when it reads."""
    nx.write_graphml(graph, path)
    again = nx.read_graphml(path)
    assert (again.graph.pop("node_default"), again.graph.pop("edge_default")) == ({}, {})
    return again


def test_a_site_says_what_was_found_and_chosen():
    graph = noble_fx.explain(transformed("fx")).to_networkx()
    assert graph.graph["model"] == "Tiny"
    assert graph.graph["branch_params"] == sum(params for _, params in graph.nodes(data="params", default=0))
    assert graph.nodes["blocks.1.fc1"] == {
        "node": "site",
        "name": "blocks.1.fc1",
        "role": "ffn.in",
        "layer": "Linear",
        "in_features": 16,
        "out_features": 32,
        "rank": 4,
        "sigma": "cosnet",
        "params": 224,
        "state": "selected",
        "reason": "in a repeated block",
        "fused": True,
        "experts": 0,
    }
    head = graph.nodes["head"]
    assert (head["state"], head["reason"], head["rank"]) == ("left out", "an output head", 0)
    assert "sigma" not in head


def test_modules_contain_what_is_in_them():
    graph = noble_fx.explain(transformed("modules")).to_networkx()
    assert graph.nodes["blocks.0"] == {"node": "module", "name": "blocks.0"}
    contains = nx.DiGraph((a, b) for a, b, relation in graph.edges(data="relation") if relation == "contains")
    assert nx.is_forest(contains)
    assert set(contains["blocks"]) == {"blocks.0", "blocks.1"}
    assert "blocks.0.q_proj" in contains["blocks.0"]
    assert "head" not in contains


@pytest.mark.parametrize(("capture", "runs"), [("fx", True), ("modules", False)])
def test_sites_of_one_input_are_joined(capture, runs):
    graph = noble_fx.explain(transformed(capture)).to_networkx()
    shared = {(a, b): facts for a, b, facts in graph.edges(data=True) if facts["relation"] == "shares input"}
    assert shared == {
        (f"blocks.{i}.q_proj", f"blocks.{i}.v_proj"): {"relation": "shares input", "group": i, "runs": runs}
        for i in range(2)
    }


def test_a_group_of_three_is_joined_to_its_first():
    sites = noble_fx.sites(nn.ModuleDict({name: nn.Linear(8, 8) for name in "abc"}), rank=2)
    graph = site_graph({"model": "M"}, sites, {}, {}, [(("a", "b", "c"), True), (("a", "b"), True)])
    assert list(graph.edges(data="group")) == [("a", "b", 0), ("a", "c", 0)]


@pytest.mark.parametrize("capture", ["fx", "modules"])
def test_graphml_holds_the_graph(capture, tmp_path):
    graph = noble_fx.explain(transformed(capture)).to_networkx()
    assert nx.utils.graphs_equal(kept(graph, tmp_path / "m.graphml"), graph)


def test_graphml_holds_any_name_and_reason(tmp_path):
    graph = explanation().to_networkx()
    assert nx.utils.graphs_equal(kept(graph, tmp_path / "m.graphml"), graph)
    for name in NAMES:
        assert graph.nodes[identifier(f"{name}.{name}")]["state"] == "selected"
    assert len({identifier(name) for name in NAMES}) == len(NAMES)
    assert identifier("layers.0.q_proj·σ") == "layers.0.q_proj·σ"


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(8, 8)])
def test_graphml_holds_a_model_of_nothing_and_of_one_layer(model, tmp_path):
    graph = noble_fx.explain(model).to_networkx()
    assert len(graph) == len(list(model.parameters())[:1])
    assert nx.utils.graphs_equal(kept(graph, tmp_path / "m.graphml"), graph)


def test_why_a_site_runs_pytorch_operators(tmp_path):
    model = noble_fx.transform(tiny(), rank=4, act=Gamma, exclude="fc2")
    graph = noble_fx.explain(model).to_networkx()
    assert "lgamma" in graph.nodes["blocks.0.fc1"]["no_kernel"]
    assert graph.nodes["blocks.0.fc2"]["reason"] == "matches exclude='fc2'"
    assert graph.nodes["blocks.0.fc1"]["sigma"] == "Gamma"
    eager = noble_fx.explain(noble_fx.transform(tiny(), rank=4, fuse=False)).to_networkx().nodes["blocks.0.fc1"]
    assert (eager["fused"], bool(eager["unfused"])) == (False, True)

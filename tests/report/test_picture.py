import torch
from torch import nn

import noble_fx
from noble_fx.report import picture as pictures
from noble_fx.report.picture import Picture, picture
from tests.models import WithOptional, tiny, transformed


def boxes(drawn: Picture) -> dict[str, str]:
    return {node.label: node.kind for node in drawn.nodes}


def named(drawn: Picture) -> set[tuple[str, str]]:
    labels = {node.name: node.label for node in drawn.nodes}
    return {(labels[a], labels[b]) for a, b in drawn.edges}


def test_what_flows_where_in_a_block():
    drawn = picture(noble_fx.explain(transformed("fx")))
    assert drawn.title == "blocks.0, one of 2 that are equal"
    assert drawn.flows
    assert boxes(drawn) == {
        "embed": "outside",
        "norm": "module",
        "q_proj, v_proj": "fused",
        "k_proj": "fused",
        "F.scaled_dot_product_attention": "operator",
        "o_proj": "fused",
        "add": "operator",
        "fc1": "fused",
        "F.gelu": "operator",
        "fc2": "fused",
        "dropout": "module",
        "out": "outside",
    }
    edges = named(drawn)
    assert {("embed", "norm"), ("norm", "k_proj"), ("k_proj", "F.scaled_dot_product_attention")} <= edges
    assert ("embed", "add") in edges  # around attention
    assert ("add", "out") in edges


def test_a_box_knows_its_site_and_its_code():
    node = next(node for node in picture(noble_fx.explain(transformed("fx"))).nodes if node.label == "fc1")
    assert node.facts["site"] == "blocks.0.fc1"
    assert node.facts["size"] == "16 → 32, rank 4, cosnet"
    assert "linear(add, block.fc1.weight, block.fc1.bias" in node.facts["code"]


def test_shape_and_dtype_where_the_graph_knows_them():
    explained = noble_fx.explain(transformed("fx"))
    for node in explained.programs[0].graph_module.graph.nodes:
        if node.op.startswith("call_"):
            node.meta["val"] = torch.empty(2, 5, 16, device="meta", dtype=torch.bfloat16)
    facts = next(node for node in picture(explained).nodes if node.label == "fc1").facts
    assert (facts["shape"], facts["dtype"]) == ("[2, 5, 16]", "bfloat16")


def test_eager_branches_and_layers_without_one_have_their_own_colours():
    model = noble_fx.transform(tiny(), rank=4, seed=0, capture="fx", fuse=False, select="ffn")
    drawn = picture(noble_fx.explain(model))
    kinds = {(node.label, node.kind) for node in drawn.nodes}
    assert {("fc1", "eager"), ("fc1", "plain"), ("q_proj", "plain")} <= kinds


def test_without_a_graph_it_shows_what_holds_what():
    drawn = picture(noble_fx.explain(noble_fx.transform(WithOptional(), rank=4)))
    assert not drawn.flows
    assert drawn.title == "blocks.0, one of 2 that are equal"
    assert boxes(drawn)["fc1"] == "fused"
    assert ("blocks.0", "fc1") in named(drawn)


def test_a_plain_model_shows_where_branches_would_be():
    drawn = picture(noble_fx.explain(tiny(width=128)))
    assert not drawn.flows
    assert boxes(drawn)["fc1"] == "fused"
    assert picture(noble_fx.explain(tiny())) is None  # too narrow for the default rank


def test_no_blocks_no_picture():
    assert picture(noble_fx.explain(nn.ReLU())) is None
    assert picture(noble_fx.explain(noble_fx.transform(nn.ModuleDict({"a": nn.Linear(8, 8)}), rank=2))) is None


def test_a_large_block_is_cut_off_with_a_word(monkeypatch):
    monkeypatch.setattr(pictures, "NODES", 4)
    drawn = picture(noble_fx.explain(transformed("fx")))
    assert len(drawn.nodes) <= 6
    assert drawn.left_out > 5
    names = {node.name for node in drawn.nodes}
    assert all(a in names and b in names for a, b in drawn.edges)

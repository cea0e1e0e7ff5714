import copy

import numpy as np
import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.transform import named_branches
from tests.models import loud, tiny, tokens
from tests.training.changing.changes import memory, started, step, table


def test_added_branches_start_at_nothing_and_learn():
    model, optimizer = started(select="fc1|q_proj")
    model.eval()
    loss = step(model, optimizer)
    before = model(tokens())
    added = noble_fx.add_branches(model, "fc2|head", rank=3, optimizer=optimizer)
    assert [(site.fqn, site.rank) for site in added] == [("blocks.0.fc2", 3), ("blocks.1.fc2", 3), ("head", 3)]
    assert torch.equal(model(tokens()), before)
    up = model.head.noble.up
    assert step(model, optimizer) < loss
    assert up.abs().min() > 0
    assert optimizer.state[up]["step"] == 1
    assert isinstance(model.head, noble_fx.NobleLinear)


def test_drawn_ones_are_those_of_transform():
    model = noble_fx.transform(tiny(), rank=4, seed=0, select="fc1")
    noble_fx.add_branches(model, "q_proj", zero=False)
    whole = noble_fx.transform(tiny(), rank=4, seed=0, select="fc1|q_proj")
    for name, branch in named_branches(whole).items():
        own = named_branches(model)[name].state_dict()
        assert all(torch.equal(own[key], value) for key, value in branch.state_dict().items())


def test_groups_are_those_of_a_model_that_is_loaded(tmp_path):
    model, optimizer = started()
    noble_fx.remove_branches(model, "attention", optimizer)
    noble_fx.add_branches(model, ["head", "blocks.1.q_proj"], rank=0.25, optimizer=optimizer)
    noble_fx.add_branches(model, "v_proj", rank=6, optimizer=optimizer)
    step(model, optimizer)
    loaded = noble_fx.load(tiny().double(), noble_fx.save(model, tmp_path / "saved")).train()
    groups = noble_fx.param_groups(loaded, lr=1e-3, weight_decay=0.1)
    assert table(groups) == table(optimizer.param_groups)
    resumed = torch.optim.AdamW(groups)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        assert step(loaded, resumed) == step(model, optimizer)
    assert {s.fqn: s.rank for s in noble_fx.sites(model)} == {s.fqn: s.rank for s in noble_fx.sites(loaded)}


def test_removed_branches_are_gone_from_everywhere():
    model, optimizer = started()
    removed = noble_fx.remove_branches(model, lambda site: site.role == "ffn.in", optimizer)
    assert [site.fqn for site in removed] == ["blocks.0.fc1", "blocks.1.fc1"]
    assert type(model.blocks[0].fc1) is nn.Linear
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}
    reasons = {site.fqn: site.reason for site in noble_fx.sites(model) if not site.selected}
    assert reasons["blocks.0.fc1"] == "taken out by noble_fx.remove_branches"
    assert reasons["head"] == "an output head"
    step(model, optimizer)


def test_all_may_go():
    model, optimizer = started()
    noble_fx.remove_branches(model, "all", optimizer)
    assert not named_branches(model)
    assert [group["name"] for group in optimizer.param_groups] == ["base matrices", "base vectors"]


def test_an_attention_is_its_own_class_without_branches():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    encoder = loud(noble_fx.transform(nn.TransformerEncoder(layer, 2).double(), rank=4, seed=0))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    listed = {site.fqn for site in noble_fx.sites(encoder) if site.selected}
    noble_fx.remove_branches(encoder, "in_proj")
    attention = encoder.layers[0].self_attn
    assert type(attention) is not nn.MultiheadAttention
    noble_fx.remove_branches(encoder, "out_proj")
    assert type(attention) is nn.MultiheadAttention
    before = encoder(x)
    noble_fx.add_branches(encoder, "self_attn")
    assert {site.fqn for site in noble_fx.sites(encoder) if site.selected} == listed
    assert (encoder(x) - before).abs().max() < 1e-12
    loud(encoder)
    assert (encoder(x) - before).abs().max() > 1e-3


def test_groups_of_ones_own_stay():
    model = noble_fx.transform(tiny(), rank=4, select="fc1")
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    noble_fx.add_branches(model, "fc2", optimizer=optimizer)
    noble_fx.set_rank(model, 6, optimizer)
    (group,) = optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in group["params"]] == group["param_names"]
    assert len(names) == len(group["params"])
    assert group["lr"] == 0.1


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (["blocks.0.fc1"], "carries a branch already; noble_fx.set_rank"),
        (["nowhere"], "is no linear layer"),
        ("nowhere", "matches no linear layer"),
        ("fc1", "leaves no layer"),
    ],
)
def test_what_cannot_be_added(select, message):
    model, optimizer = started(1, select="fc1")
    before = memory(model, optimizer)
    with pytest.raises(ConfigError, match=message):
        noble_fx.add_branches(model, select, optimizer=optimizer)
    assert memory(model, optimizer) == before


def test_a_rank_has_to_be_one_and_to_fit():
    model = noble_fx.transform(tiny(), rank="20%", select="fc1")
    with pytest.raises(ConfigError, match="is a budget for all branches"):
        noble_fx.add_branches(model, "fc2")
    with pytest.raises(ConfigError, match=r"rank 16 does not fit 'blocks.0.fc2'"):
        noble_fx.add_branches(model, "fc2", rank=16)
    noble_fx.add_branches(model, "fc2", rank=5)


def test_an_optimizer_that_does_not_know_branches_is_refused():
    model = noble_fx.transform(tiny(), rank=4, select="fc1")
    optimizer = torch.optim.SGD([model.head.weight])
    with pytest.raises(ConfigError, match=r"no parameter like 'blocks.0.fc2"):
        noble_fx.add_branches(model, "fc2", optimizer=optimizer)
    assert type(model.blocks[0].fc2) is nn.Linear


@pytest.mark.parametrize(
    ("select", "message"), [("fc9", "takes no layer"), (["head"], "carries no branch"), (3, "must be one of")]
)
def test_what_cannot_be_removed(select, message):
    model, optimizer = started(1)
    before = memory(model, optimizer)
    with pytest.raises(ConfigError, match=message):
        noble_fx.remove_branches(model, select, optimizer)
    assert memory(model, optimizer) == before


def two_layers():
    torch.manual_seed(0)
    return noble_fx.transform(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), rank=4, seed=0)


def test_where_all_carry_one_and_where_none_is_left():
    model = two_layers()
    with pytest.raises(ConfigError, match="2 × carries a branch already"):
        noble_fx.add_branches(model, "all")
    noble_fx.remove_branches(model, "all")
    with pytest.raises(ConfigError, match="no branch is left whose settings a new one could have"):
        noble_fx.add_branches(model, "all")


def test_a_site_comes_back_by_the_role_that_it_had():
    model = two_layers()
    before = {site.fqn: site.role for site in noble_fx.sites(model)}
    noble_fx.remove_branches(model, "^0$")
    assert [(site.fqn, site.role) for site in noble_fx.add_branches(model, "ffn", rank=np.int64(2))] == [
        ("0", before["0"])
    ]
    assert {site.fqn: site.role for site in noble_fx.sites(model)} == before


def test_beside_bases_a_layer_that_comes_later_keeps_its_w(tmp_path):
    model = noble_fx.transform(tiny(), rank=2, select="fc1", base="factorized", base_rank=4, guide=0.5, seed=0)
    added = noble_fx.add_branches(model, "fc2")
    assert [site.base for site in added] == ["", ""]
    noble_fx.save(model, tmp_path / "m")
    loaded = noble_fx.load(tiny(), tmp_path / "m")
    assert list(noble_fx.named_bases(loaded)) == ["blocks.0.fc1", "blocks.1.fc1"]
    assert torch.equal(loaded.eval()(tokens()), model.eval()(tokens()))

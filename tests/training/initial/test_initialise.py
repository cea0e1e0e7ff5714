"""Branches of a model start by a method: what learns, what is kept, and that W never changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.initial import core, diagonal, initialise
from noble_fx.training.rules import FrozenSlices
from tests.models import tiny, tokens
from tests.training.rules.linear import SCALE
from tests.training.rules.linear import model as scaled_model

ACTS = {"svd": "identity", "tiled": "identity", "orthonormal": core, "gradient": core, "ldu": diagonal}
LEARN = {"svd": {"down", "up"}, "tiled": {"up"}, "orthonormal": {"act.weight"}, "gradient": {"act.weight"}}
LEARN["ldu"] = {"act.scale"}


def loss(model, batch):
    return F.cross_entropy(model(batch).flatten(0, 1), batch.flatten())


def started(method, **settings):
    model = noble_fx.transform(tiny(), rank=4, act=ACTS[method], seed=0, **settings).double()
    arguments = {"loss": loss, "batches": [tokens()], "lr": 1e-3} if method == "gradient" else {}
    return model, initialise(model, method, **arguments)


@pytest.mark.parametrize("method", ACTS)
@pytest.mark.parametrize("preset", ["paper", "reference", "flat"])
def test_w_stays_and_the_base_is_there_to_the_bit(method, preset):
    plain = tiny().double()
    model, done = started(method, preset=preset)
    same = torch.allclose(model(tokens()), plain(tokens()), rtol=0, atol=0)
    assert {(start.method, start.keeps, start.absorbed) for start in done} == {(method, same, False)}
    assert same == (method != "gradient")
    with noble_fx.disabled(model):
        assert torch.equal(model(tokens()), plain(tokens()))
    assert torch.equal(noble_fx.remove(model)(tokens()), plain(tokens()))


@pytest.mark.parametrize("method", ACTS)
def test_what_learns_does_and_the_rest_of_the_branch_stays(method):
    model, _ = started(method)
    noble = {name: p for name, p in model.named_parameters() if ".noble." in name}
    learning = {name.rpartition("noble.")[2] for name, p in noble.items() if p.requires_grad}
    assert learning == LEARN[method]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, lr=1e-3, weight_decay=0.1))
    start = loss(model, tokens()).item()
    for _ in range(8):
        optimizer.zero_grad()
        loss(model, tokens()).backward()
        optimizer.step()
    assert loss(model, tokens()).item() < start
    for name, parameter in noble.items():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_a_gradient_starts_one_step_nearer():
    model, _ = started("gradient")
    base = tiny().double()
    assert loss(model, tokens()) < loss(base, tokens())
    branch = model.blocks[0].fc1.noble
    torch.testing.assert_close(branch.down @ branch.down.T, torch.eye(4).double(), rtol=1e-10, atol=1e-10)


def test_columns_of_u_are_frozen_one_after_another_as_lamda_means_it():
    model, _ = started("orthonormal")
    branch = model.blocks[0].fc1.noble
    branch.up.requires_grad_(True)
    rule, up = FrozenSlices(model), branch.up.detach().clone()
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, lr=1e-2, weight_decay=0.1))
    rule.on(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        loss(model, tokens()).backward()
        optimizer.step()
        rule.hold("blocks.0.fc1.noble.up", 1, [step])
    assert (branch.up[:, 3] != up[:, 3]).any()
    held = branch.up.detach().clone()
    optimizer.step()
    assert torch.equal(branch.up, held)


def test_a_scale_between_the_matrices_is_allowed_for():
    model = scaled_model()
    before = model[0].noble.down.detach().clone()
    (start,) = initialise(model, "svd")
    assert (start.fqn, start.learns) == ("0", ("down", "up"))
    assert not torch.equal(model[0].noble.down, before)
    assert SCALE * model[0].noble.up.abs().max() == 0


def test_weights_that_lie_the_other_way():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    layer = nn.ModuleList([transformers.pytorch_utils.Conv1D(9, 12)])
    noble_fx.transform(layer, rank=3, act="identity", select="all")
    initialise(layer, "svd")
    w = layer[0].weight.detach().T
    torch.testing.assert_close((w @ layer[0].noble.down.T).norm(dim=0), torch.linalg.svdvals(w)[:3])


@pytest.mark.parametrize(
    ("act", "method", "more", "message"),
    [
        ("identity", "pca", {}, "method='pca' is unknown"),
        ("cosnet", "svd", {}, r"σ \(cosnet\) stands between D and U"),
        ("identity", "ldu", {}, "'ldu' is not for the branch at 'blocks.0.q_proj'; it needs a diagonal"),
        (core, "svd", {}, "'svd' is not for the branch at 'blocks.0.q_proj'; it needs a linear branch without"),
        (core, "gradient", {}, "needs loss="),
        (core, "gradient", {"loss": loss, "lr": 0}, "needs lr="),
        ("identity", "svd", {"lr": 1.0}, "reads W alone"),
        (core, "gradient", {"loss": loss, "lr": 1.0, "batches": []}, "no batch has reached"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(act, method, more, message):
    model = noble_fx.transform(tiny(), rank=4, act=act, seed=0)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    with pytest.raises(ConfigError, match=message):
        initialise(model, method, **more)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]


def test_values_that_are_not_finite_are_seen_before_anything_is_left_changed():
    model = noble_fx.transform(tiny(), rank=4, act="identity", seed=0)
    with torch.no_grad():
        model.blocks[1].fc2.weight[0, 0] = torch.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"'blocks\.1\.fc2' would start from has values that are not finite"):
        initialise(model, "svd")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

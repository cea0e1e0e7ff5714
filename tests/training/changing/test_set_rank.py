import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.transform import named_branches
from tests.models import loud, tiny, tokens, transformed
from tests.one_rank import PARALLEL, first_of_two, fsdp2, one_rank
from tests.samples import ACTIVATIONS, sampled
from tests.training.changing.changes import memory, started, step, table


@pytest.mark.parametrize("act", sampled(noble_fx.activation_names(), ACTIVATIONS))
def test_more_channels_are_the_same_model_and_learn(act):
    model = loud(noble_fx.transform(tiny(layers=1), rank=3, act=act, seed=0).double())
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, 1e-3))
    step(model, optimizer)
    before = model(tokens())
    changes = noble_fx.set_rank(model, 5, optimizer)
    assert [(change.before, change.after, change.error) for change in changes] == [(3, 5, 0.0)] * 6
    assert (model(tokens()) - before).abs().max() < 1e-10 * before.abs().max()
    up = model.blocks[0].fc1.noble.up
    step(model, optimizer)
    assert up[:, 3:].abs().min() > 0


def test_training_goes_on_from_where_it_was():
    model, optimizer = started()
    other, alone = started()
    noble_fx.set_rank(model, 7, optimizer)
    assert step(model, optimizer) == pytest.approx(step(other, alone), abs=1e-12)
    down, old = (m.blocks[0].fc1.noble.down for m in (model, other))
    assert torch.allclose(down[:4], old, atol=1e-12)  # D's rate is the same: the old channels took the same step
    assert optimizer.state[down]["step"] == 4
    assert torch.allclose(optimizer.state[down]["exp_avg_sq"][:4], alone.state[old]["exp_avg_sq"], rtol=1e-9, atol=0)
    for _ in range(5):
        last = step(model, optimizer)
    assert last < step(other, alone)


def test_moments_of_new_channels_are_zero_and_of_kept_ones_carried():
    model, optimizer = started()
    branch = model.blocks[0].fc1.noble
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in branch.named_parameters()}
    noble_fx.set_rank(model, {"fc1": 6}, optimizer)
    branch = model.blocks[0].fc1.noble
    for name, parameter in branch.named_parameters():
        moment, old = optimizer.state[parameter]["exp_avg"], before[name]
        assert moment.shape == parameter.shape
        kept = moment[tuple(slice(size) for size in old.shape)]
        assert torch.equal(kept, old)
        assert moment.count_nonzero() == old.count_nonzero()
    assert len(optimizer.state) == len(list(model.parameters()))


def test_the_optimizer_has_the_groups_of_a_model_that_is_loaded(tmp_path):
    model, optimizer = started()
    noble_fx.set_rank(model, {"fc1": 9, "q_proj": 0.3}, optimizer)
    step(model, optimizer)
    noble_fx.set_rank(model, {"blocks.1": 3}, optimizer, inputs=tokens())
    step(model, optimizer)
    loaded = noble_fx.load(tiny().double(), noble_fx.save(model, tmp_path / "saved")).train()
    groups = noble_fx.param_groups(loaded, lr=1e-3, weight_decay=0.1)
    assert table(groups) == table(optimizer.param_groups)
    resumed = torch.optim.AdamW(groups)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        assert step(loaded, resumed) == step(model, optimizer)
    ranks = {site.fqn: (site.rank, site.params) for site in noble_fx.sites(model)}
    assert ranks == {site.fqn: (site.rank, site.params) for site in noble_fx.sites(loaded)}
    assert ranks["blocks.0.fc1"][0] == 9
    assert ranks["blocks.1.fc1"][0] == 3
    assert "9" in str(noble_fx.explain(model))


def test_fewer_channels_lose_less_where_inputs_are_given():
    def off(inputs):
        model = transformed(rank=8).double()
        before = model(tokens())
        changes = noble_fx.set_rank(model, 4, inputs=inputs)
        return ((model(tokens()) - before).norm() / before.norm()).item(), changes

    seen, changes = off([tokens(), {"idx": tokens(3, 4)}])
    noise, guessed = off(None)
    assert seen < noise < 0.5
    assert {change.on for change in changes} == {"inputs"}
    assert {change.on for change in guessed} == {"noise"}
    assert all(0 < change.error < 0.5 for change in changes)
    assert "8 → 4" in str(changes)


def test_losing_what_nobody_hears_loses_nothing():
    model, optimizer = started()
    model.eval()
    before, moments = model(tokens()), copy.deepcopy(optimizer.state_dict()["state"])
    groups = table(optimizer.param_groups)
    noble_fx.set_rank(model, 9, optimizer)
    changes = noble_fx.set_rank(model, 4, optimizer, inputs=tokens())
    assert max(change.error for change in changes) < 1e-6
    assert (model(tokens()) - before).abs().max() < 1e-6
    assert table(optimizer.param_groups) == groups
    for key, state in optimizer.state_dict()["state"].items():
        assert torch.equal(state["exp_avg"], moments[key]["exp_avg"])


def test_the_model_stands_as_it_did_otherwise():
    model = transformed().train()
    fc1, weight = model.blocks[0].fc1, model.blocks[0].fc1.weight
    fc1.noble.down.requires_grad_(False)
    noble_fx.set_rank(model, 0.5, inputs=tokens())
    assert model.blocks[0].fc1 is fc1
    assert fc1.weight is weight
    assert all(module.training for module in model.modules())
    assert not fc1.noble.down.requires_grad
    assert {site.rank for site in noble_fx.sites(model) if site.selected} == {8}
    assert not fc1.noble.unfused
    assert fc1.noble._forward_pre_hooks == {}
    with noble_fx.disabled(model):
        base = model.eval()(tokens())
    assert torch.allclose(noble_fx.remove(model)(tokens()), base)


def test_gradients_go_along():
    model, optimizer = started()
    step(model, torch.optim.SGD(model.parameters(), lr=0.0))
    gradient = model.blocks[0].fc1.noble.down.grad.clone()
    noble_fx.set_rank(model, 6, optimizer)
    grown = model.blocks[0].fc1.noble.down.grad
    assert torch.equal(grown[:4], gradient)
    assert grown[4:].abs().max() == 0
    assert "without effect" not in str(noble_fx.explain(model))


@pytest.mark.parametrize("backend", ["eager", pytest.param("noble_fx", marks=pytest.mark.long)])
def test_a_compiled_model(backend):
    model = loud(noble_fx.transform(tiny(layers=1), rank=4, seed=0))
    compiled = torch.compile(model, backend=backend)
    before = compiled(tokens())
    noble_fx.set_rank(compiled, 6)
    assert torch.allclose(compiled(tokens()), before, atol=1e-6)
    with torch.no_grad():
        model.blocks[0].fc1.noble.up.add_(1.0)
    assert torch.allclose(compiled(tokens()), model(tokens()), atol=1e-5)
    assert not torch.allclose(compiled(tokens()), before, atol=1e-3)


def test_the_projections_of_an_attention():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    encoder = loud(noble_fx.transform(nn.TransformerEncoder(layer, 2).double(), rank=4, seed=0))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = encoder(x)
    noble_fx.set_rank(encoder, 7)
    assert (encoder(x) - before).abs().max() < 1e-12
    changes = noble_fx.set_rank(encoder, 3, inputs=x)
    assert {change.on for change in changes} == {"inputs"}
    assert {change.fqn for change in changes} >= {"layers.0.self_attn.in_proj_weight", "layers.1.self_attn.out_proj"}


def test_muon_beside_adam():
    model = transformed().double()
    muon, adam = noble_fx.muon_split(noble_fx.param_groups(model, 1e-3, muon=True, muon_lr=0.02))
    optimizers = [torch.optim.Muon(muon), torch.optim.AdamW(adam)]
    step(model, *optimizers)
    matrices = len(optimizers[0].param_groups[0]["params"])
    noble_fx.set_rank(model, 6, optimizers)
    assert len(optimizers[0].param_groups[0]["params"]) == matrices
    learning = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(learning) == sorted(id(p) for p in model.parameters())
    step(model, *optimizers)


def test_a_scheduler_is_built_anew_from_the_groups():
    model, optimizer = started(0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: 1 / (1 + at))
    for _ in range(3):
        optimizer.step()
        schedule.step()
    with pytest.warns(UserWarning, match=r"build it anew.*Trainer: stop, save"):
        noble_fx.set_rank(model, {"fc1": 8}, optimizer)
    again = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: 1 / (1 + at), last_epoch=schedule.last_epoch - 1)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-3 * group["lr_scale"] / 4)
    again.step()
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-3 * group["lr_scale"] / 5)


def test_the_same_rank_changes_nothing():
    model, optimizer = started()
    before = memory(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert noble_fx.set_rank(model, 4, optimizer) == []
    assert memory(model, optimizer) == before


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (16, r"rank 16 does not fit 'blocks.0.q_proj' \[16, 16\].*rank=\{"),
        ("4%", "is not a rank"),
        (0, "is not a rank"),
        ({"fc9": 2}, "matches no layer with a branch"),
        ({"(": 2}, "regular expression"),
    ],
)
def test_ranks_that_cannot_be(rank, message):
    model, optimizer = started(1)
    before = memory(model, optimizer)
    with pytest.raises(ConfigError, match=message):
        noble_fx.set_rank(model, rank, optimizer)
    assert memory(model, optimizer) == before


def test_an_activation_that_mixes_channels_is_refused_by_name():
    model = noble_fx.transform(tiny(), rank=4, act=lambda rank: nn.Softmax(-1))
    with pytest.raises(ConfigError, match=r"blocks.0.q_proj.*rank 4 to 6: σ \(.*lambda.*others change"):
        noble_fx.set_rank(model, 6)


def test_an_optimizer_with_another_memory_is_refused():
    model = transformed()
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer)
    before = memory(model, optimizer)
    with pytest.raises(ConfigError, match=r"Adafactor keeps of .*nobody can tell.*build a new one"):
        noble_fx.set_rank(model, 6, optimizer)
    assert memory(model, optimizer) == before
    with pytest.raises(ConfigError, match="LBFGS"):
        noble_fx.set_rank(model, 6, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ConfigError, match=r"holds no 'blocks.0.q_proj.noble.down'"):
        noble_fx.set_rank(model, 6, torch.optim.SGD([model.head.weight]))
    with pytest.raises(ConfigError, match=r"must be a torch.optim.Optimizer"):
        noble_fx.set_rank(model, 6, "adam")


@pytest.mark.parametrize("name", PARALLEL)
def test_a_parallel_model_is_refused(name):
    with one_rank() as mesh:
        model = PARALLEL[name](transformed(), mesh)
        with pytest.raises(CaptureError, match=rf"wrapped by {name}.*change the plain model"):
            noble_fx.set_rank(model, 6)


def test_graphs_folded_models_and_parts_are_refused():
    with pytest.raises(CaptureError, match="runs a graph"):
        noble_fx.set_rank(transformed("fx"), 6)
    model = transformed()
    with pytest.raises(ConfigError, match="folded"):
        noble_fx.set_rank(noble_fx.fold(model), 6)
    with pytest.raises(ConfigError, match=r"was called 'blocks.0.q_proj' when the model was transformed"):
        noble_fx.set_rank(model.blocks[0], 6)
    with pytest.raises(ConfigError, match="no branches"):
        noble_fx.set_rank(tiny(), 6)
    with noble_fx.disabled(model), pytest.raises(ConfigError, match=r"inside noble_fx.disabled"):
        noble_fx.set_rank(model, 6)


def test_hooks_parametrizations_and_meta_are_refused():
    model = transformed()
    handle = model.blocks[0].fc1.noble.act.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match=r"'blocks.0.fc1'.*hooks"):
        noble_fx.set_rank(model, 6)
    handle.remove()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].fc1.noble, "up")
    with pytest.raises(ConfigError, match=r"'blocks.0.fc1'.*parametrized"):
        noble_fx.set_rank(model, 6)
    with torch.device("meta"):
        empty = noble_fx.transform(type(tiny())(), rank=4)
    with pytest.raises(ConfigError, match="meta device"):
        noble_fx.set_rank(empty, 6)
    with first_of_two() as mesh, pytest.raises(CaptureError):
        noble_fx.set_rank(fsdp2(transformed(), mesh), 6)


def test_a_copy_that_knows_its_activation_no_more_says_so():
    model = copy.deepcopy(noble_fx.transform(tiny(), rank=4, act=lambda rank: nn.Tanh()))
    with pytest.raises(ConfigError, match=r"'blocks.0.q_proj' cannot go from rank 4 to 6: .*<.*lambda.*register_act"):
        noble_fx.set_rank(model, 6)


def test_fuse_require_is_asked_again():
    model = noble_fx.transform(tiny(width=64), rank=8, fuse="require")
    noble_fx.set_rank(model, 16)
    assert {branch.rank for branch in named_branches(model).values()} == {16}


def test_branches_built_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(noble_fx.NobleLinear.build(8, 8, rank=2), nn.Tanh()).double()
    before = model(torch.ones(1, 8).double())
    noble_fx.set_rank(model, 5)
    assert torch.allclose(model(torch.ones(1, 8).double()), before, atol=1e-12)
    assert model[0].noble.config.rank == 5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["inputs", "U"])
def test_values_that_are_not_finite_are_refused(value, where):
    torch.manual_seed(0)
    model = noble_fx.transform(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), rank=4, seed=0)
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, 1e-3))
    x = torch.randn(8, 32)
    model(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        (x if where == "inputs" else model[0].noble.up)[3, 1] = value
    message = "the inputs give non-finite values at site '0'" if where == "inputs" else "^0.noble.up has values"
    before, groups = copy.deepcopy(model.state_dict()), list(optimizer.param_groups)
    parameters = list(model.parameters())
    with pytest.raises(ConfigError, match=message):
        noble_fx.set_rank(model, 2, optimizer, inputs=x)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert all(one is other for one, other in zip(optimizer.param_groups, groups, strict=True))
    assert set(optimizer.state) == set(parameters)


def test_a_fit_that_overflows_is_refused():
    model = noble_fx.transform(tiny(), rank=4, seed=0)
    with torch.no_grad():
        model.blocks[0].fc1.noble.up.fill_(3e38)
    with pytest.raises(ConfigError, match=r"'blocks.0.fc1' cannot go from rank 4 to 2: .*not finite"):
        noble_fx.set_rank(model, 2)


def test_an_integer_of_numpy_is_a_rank():
    model = transformed()
    noble_fx.set_rank(model, np.int64(6))
    noble_fx.set_rank(model, {"fc1": np.int32(3)})
    ranks = {name: branch.rank for name, branch in named_branches(model).items()}
    assert {rank for name, rank in ranks.items() if "fc1" not in name} == {6}
    assert type(ranks["blocks.0.fc1"]) is int
    assert ranks["blocks.0.fc1"] == 3
    with pytest.raises(ConfigError, match="is not a rank"):
        noble_fx.set_rank(model, True)

"""`noble_fx.step`: guides that fade and go, widths that are drawn, and graphs that see it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import noble_fx
from noble_fx import ConfigError
from tests.models import tiny, tokens
from tests.one_rank import fsdp2, one_rank


def guided(capture="modules", guide=0.5, **settings):
    chosen = {"rank": 2, "base": "factorized", "base_rank": 4, "seed": 0}
    return noble_fx.transform(tiny(), guide=guide, capture=capture, **chosen | settings)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("capture", ["modules", "fx"])
def test_at_first_the_model_is_the_dense_one_exactly(capture):
    expected = noble_fx.transform(tiny(), rank=2, seed=0, fuse=False).eval()(tokens())
    model = guided(capture)
    assert noble_fx.step(model, 0) == 1.0
    assert torch.equal(model.eval()(tokens()), expected)


@pytest.mark.parametrize("capture", ["modules", "fx"])
def test_at_last_the_guides_are_gone_and_the_model_is_the_unguided_one(capture):
    model, plain = guided(capture), guided(guide=0.0)
    guides = [base.weight for base in noble_fx.named_bases(model).values()]
    model(tokens()).sum().backward()
    assert noble_fx.step(model, 0.49) > 0
    assert noble_fx.step(model, 0.5) == 0.0
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model.eval()(tokens()), plain.eval()(tokens()))
    assert all(weight.grad is None and not weight.requires_grad for weight in guides)
    assert noble_fx.step(model, 0.9) == 0.0
    assert all(site.base_params < site.in_features * site.out_features for site in noble_fx.sites(model) if site.base)


def test_an_optimizer_goes_on_without_the_guides():
    model = guided()
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, lr=1e-2, weight_decay=0.1))
    guide, base = model.blocks[0].fc1.base.weight, model.blocks[0].fc1.base.inner

    def learn(progress):
        before = guide.detach().clone(), base.up.detach().clone()
        noble_fx.step(model, progress)
        model(tokens()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return torch.equal(guide, before[0]), torch.equal(base.up, before[1])

    assert learn(0.2) == (False, False)
    assert learn(0.6) == (True, False)


@pytest.mark.parametrize("kind", ["factorized", "ordered"])
def test_a_compiled_graph_sees_every_step_and_is_made_anew_once(kind):
    made = 0

    def counted(graph, inputs):
        nonlocal made
        made += 1
        return graph

    model = without_dropout(guided(base=kind)).train()
    compiled = torch.compile(model, backend=counted, fullgraph=True)
    for progress in (0.0, 0.1, 0.3, 0.45, 0.5, 0.7, 0.9):
        noble_fx.step(model, progress, torch.Generator().manual_seed(int(progress * 100)))
        torch.testing.assert_close(compiled(tokens()), model(tokens()))
    assert made == 2


def test_widths_are_drawn_alike_over_all_pairs_of_layer_and_width():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 8))
    noble_fx.transform(model, rank=1, select=["0", "1"], base="ordered", seed=0)
    generator, drawn = torch.Generator().manual_seed(0), []
    for _ in range(600):
        noble_fx.step(model, 0.1, generator)
        drawn.append((int(model[0].base.prefix), int(model[1].base.prefix)))
    assert all(first == 8 or second == 2 for first, second in drawn)
    counts = {(first, 2): drawn.count((first, 2)) for first in range(1, 8)}
    assert all(30 < count < 95 for count in counts.values())  # 60 of 600 each
    assert 30 < drawn.count((8, 1)) < 95
    noble_fx.step(model, 0.1, generator.manual_seed(7))
    again = (int(model[0].base.prefix), int(model[1].base.prefix))
    noble_fx.step(model, 0.1, generator.manual_seed(7))
    assert again == (int(model[0].base.prefix), int(model[1].base.prefix))


def test_a_model_without_ordered_bases_draws_nothing():
    models = guided(), tiny()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for model in models:
        noble_fx.step(model, 0.2)
    assert torch.equal(torch.rand(1), expected)


def test_halfway_it_is_saved_and_loaded(tmp_path):
    model = guided()
    noble_fx.step(model, 0.2)
    noble_fx.save(model, tmp_path / "m")
    loaded = noble_fx.load(tiny(), tmp_path / "m")
    assert torch.equal(loaded.eval()(tokens()), model.eval()(tokens()))
    noble_fx.step(loaded, 0.6)
    noble_fx.save(loaded, tmp_path / "later")
    assert torch.equal(noble_fx.load(tiny(), tmp_path / "later").eval()(tokens()), loaded.eval()(tokens()))


def test_a_copy_fades_by_itself():
    model = guided()
    copied = copy.deepcopy(model)
    noble_fx.step(copied, 0.3)
    assert float(model.blocks[0].fc1.base.alpha) == 1.0


def test_in_fully_shard_the_guides_go_too():
    with one_rank() as mesh:
        model = fsdp2(without_dropout(guided()), mesh)
        for progress in (0.2, 0.6, 0.8):
            noble_fx.step(model, progress)
            model(tokens()).sum().backward()
        torch.testing.assert_close(model(tokens()), without_dropout(guided(guide=0.0))(tokens()))


@pytest.mark.filterwarnings("ignore:.*count for nothing any more:UserWarning")
def test_inside_ddp_they_stay_with_a_word_and_count_for_nothing():
    with one_rank():
        model = DistributedDataParallel(without_dropout(guided()))
        for progress in (0.2, 0.6, 0.8):
            noble_fx.step(model, progress)
            model(tokens()).sum().backward()
        expected = without_dropout(guided(guide=0.0))(tokens())
        torch.testing.assert_close(model(tokens()), expected)
        with pytest.warns(UserWarning, match="Call noble_fx.step on the plain model inside"):
            noble_fx.step(model, 0.9)
        noble_fx.step(model.module, 0.9)
        again = DistributedDataParallel(model.module)
        again(tokens()).sum().backward()
        torch.testing.assert_close(again(tokens()), expected)


@pytest.mark.parametrize("progress", [-0.1, 1.01, True, "half", None, float("nan")])
def test_what_is_no_share_is_refused(progress):
    with pytest.raises(ConfigError, match=r"progress=.* must be the share of training that is done, from 0 to 1"):
        noble_fx.step(guided(), progress)

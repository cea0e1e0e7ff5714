"""Ranks drawn a step, one for the whole model."""

import copy

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError, CheckpointError, ConfigError
from noble_fx.training.rules import Prefix
from noble_fx.training.rules.channels import masks
from tests.models import loud, tiny, tokens, transformed


def branch_of(model):
    return model.blocks[0].fc1.noble


@pytest.mark.parametrize("rank", [1, 3, 5, 6])
def test_of_a_linear_branch_it_is_lora_of_that_rank(rank):
    """U, D with α = r at rank r: with the first b channels, α/b times their product."""
    torch.manual_seed(0)
    model = loud(noble_fx.transform(nn.Sequential(nn.Linear(9, 8)), rank=6, act="identity", select="all")).double()
    up, down = model[0].noble.up, model[0].noble.down
    rule, x, alpha = Prefix(model, normalise="alpha"), torch.randn(5, 9, dtype=torch.float64), 6
    wanted = nn.functional.linear(x, model[0].weight, model[0].bias) + alpha / rank * x @ down[:rank].T @ up[:, :rank].T
    with rule.at(rank):
        torch.testing.assert_close(model(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act", ["cosnet", "cos", "gelu", "swiglu_net", "identity"])
def test_what_does_not_speak_has_no_gradient(act):
    model = transformed(act=act).double().train()
    rule = Prefix(model)
    rule.drawn = 3
    rule._tell()
    model(tokens()).square().sum().backward()
    branch = branch_of(model)
    assert branch.up.grad[:, :3].count_nonzero() > 0
    assert branch.up.grad[:, 3:].count_nonzero() == 0
    assert branch.down.grad[3:].count_nonzero() == 0
    for name, parameter in branch.act.named_parameters():
        if name.endswith("mixer.weight") and "swiglu" not in act:
            assert parameter.grad[3:].count_nonzero() == parameter.grad[:, 3:].count_nonzero() == 0
            assert parameter.grad[:3, :3].count_nonzero() == 9


def test_every_rank_is_drawn_and_all_branches_have_their_share():
    model = transformed(rank_pattern={"fc": 8})
    rule, seen = Prefix(model, lowest=2, seed=3), set()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule.on(optimizer)
    model.train()
    for _ in range(60):
        optimizer.step()
        seen.add(rule.drawn)
        speaking = {
            (branch.rank, int(masks(branch)[0].mask.count_nonzero()))
            for branch in (branch_of(model), model.blocks[1].q_proj.noble)
        }
        assert speaking == {(8, rule.drawn), (4, -(-rule.drawn // 2))}
    assert seen == set(range(2, 9))
    other = Prefix(transformed(rank_pattern={"fc": 8}), lowest=2, seed=3)
    again = [other.after_step() or other.drawn for _ in range(60)]
    assert again[-1] == rule.drawn  # of the seed alone, so that every rank of a process group draws the same


def test_all_speak_in_eval_mode_and_the_way_back():
    plain, model = transformed(), transformed()
    rule = Prefix(model, normalise="root")
    assert not torch.equal(model.train()(tokens()), plain.train()(tokens())) or rule.drawn == 4
    assert torch.equal(model.eval()(tokens()), plain.eval()(tokens()))
    branch = branch_of(model)
    assert branch.unfused == ""
    assert rule.close() is model
    assert list(model.state_dict()) == list(plain.state_dict())
    assert branch.key == branch_of(plain).key


def test_a_resumed_run_draws_what_it_would_have():
    rule = Prefix(transformed())
    for _ in range(5):
        rule.after_step()
    other = Prefix(transformed(), seed=7)
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    for _ in range(8):
        assert other.drawn == rule.drawn
        assert int(masks(other._branches[0])[0].drawn) == rule.drawn
        rule.after_step()
        other.after_step()


def test_a_compiled_graph_reads_the_rank_of_today():
    model = transformed().train()
    rule = Prefix(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for rank in (4, 1, 3, 2):
        rule.drawn = rank
        rule._tell()
        torch.testing.assert_close(compiled(tokens()), model(tokens()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_file_knows_no_masks(tmp_path):
    model = transformed()
    Prefix(model)
    noble_fx.save(model, tmp_path / "chain")
    again = noble_fx.load(tiny(), tmp_path / "chain")
    assert torch.equal(again(tokens()), model(tokens()))
    single = transformed(act="cos")
    rule = Prefix(single)
    with pytest.raises(CheckpointError, match=r"masks or gates of a training rule.*close\(\)"):
        noble_fx.save(single, tmp_path / "single")
    rule.close()
    noble_fx.save(single, tmp_path / "single")


def test_what_is_refused():
    with pytest.raises(ConfigError, match="normalise='half' must be one of 'none', 'alpha', 'root'"):
        Prefix(transformed(), normalise="half")
    with pytest.raises(ConfigError, match="lowest=5 must be a number from 1 to 4"):
        Prefix(transformed(), lowest=5)
    mixing = noble_fx.transform(tiny(), rank=4, act=lambda rank: nn.Softmax(-1))
    with pytest.raises(ConfigError, match="cannot be trained at other ranks"):
        Prefix(mixing)
    assert type(branch_of(mixing).act) is nn.Softmax
    with pytest.raises(CaptureError, match="capture='fx'"):
        Prefix(transformed("fx"))
    with pytest.raises(ConfigError, match="no branches"):
        Prefix(tiny())

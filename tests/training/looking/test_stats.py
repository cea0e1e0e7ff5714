"""The numbers of training, by key."""

import json
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import noble_fx
from noble_fx import ConfigError
from noble_fx.transform import named_branches
from tests.models import tiny, tokens, transformed
from tests.one_rank import first_of_two, fsdp1, fsdp2, one_rank, tensor_parallel


def stepped(model, optimizer=None):
    """One step, watched; gradients stay."""
    with noble_fx.watching(model) as seen:
        model(tokens()).square().mean().backward()
    if optimizer is not None:
        optimizer.step()
    return seen


def length(tensors):
    return math.sqrt(sum(tensor.detach().double().square().sum().item() for tensor in tensors))


def test_against_float64():
    model = transformed("modules")
    optimizer = torch.optim.SGD(noble_fx.param_groups(model, lr=0.01))
    seen = stepped(model, optimizer)
    stats = noble_fx.stats(model, optimizer, seen)
    branches = named_branches(model)
    by_role = {}
    for site, branch in branches.items():
        for role in {role for role, _, _ in branch.parameter_roles()}:
            own = [p for r, p, _ in branch.parameter_roles() if r == role]
            by_role.setdefault(role, []).extend(own)
            assert stats[f"noble/{site}/norm/{role}"] == pytest.approx(length(own), rel=1e-5)
            assert stats[f"noble/{site}/grad/{role}"] == pytest.approx(length(p.grad for p in own), rel=1e-5)
        assert stats[f"noble/{site}/grad/all"] == pytest.approx(length(p.grad for p in branch.parameters()), rel=1e-5)
        assert stats[f"noble/{site}/share"] == seen.shares[site]
        assert stats[f"noble/{site}/moved/frequency"] == pytest.approx(
            0.03 * stats[f"noble/{site}/grad/frequency"] / math.sqrt(8), rel=1e-3
        )  # a step of SGD: rate × gradient, over 2 r channels
    for role, parameters in by_role.items():
        assert stats[f"noble/total/norm/{role}"] == pytest.approx(length(parameters), rel=1e-5)
    own = {id(p) for branch in branches.values() for p in branch.parameters()}
    base = [p for p in model.parameters() if id(p) not in own]
    assert stats["noble/total/grad/base"] == pytest.approx(length(p.grad for p in base), rel=1e-5)
    everything = math.hypot(stats["noble/total/grad/base"], stats["noble/total/grad/all"])
    assert everything == pytest.approx(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
    assert stats["noble/total/share"] == seen.share
    assert stats["noble/lr/phase"] == pytest.approx(0.05)


def test_it_is_plain_for_a_logger():
    model = transformed("modules")
    stats = noble_fx.stats(model, seen=stepped(model))
    assert isinstance(stats, dict)
    assert all(type(key) is str and type(value) is float for key, value in stats.items())
    assert json.loads(json.dumps(stats)) == stats
    keys = set(stats)
    assert not any(other.startswith(f"{key}/") for key in keys for other in keys)  # a file store of metrics has folders
    assert all(key.startswith("noble/") for key in keys)


def test_sums_alone():
    model = transformed("modules")
    seen = stepped(model)
    everything, sums = noble_fx.stats(model, seen=seen), noble_fx.stats(model, seen=seen, per_site=False)
    assert sums == {key: value for key, value in everything.items() if key.startswith("noble/total/")}


def test_what_there_is_nothing_of_has_no_key():
    model = transformed("modules")
    assert not any("/grad/" in key or "/share" in key or "/lr/" in key for key in noble_fx.stats(model))
    noble_fx.set_trainable(model, "base")
    stepped(model)
    grads = [key for key in noble_fx.stats(model) if "/grad/" in key]
    assert grads == ["noble/total/grad/base"]
    model.blocks[0].fc1.noble.up.requires_grad_(True)
    model.blocks[0].fc1.noble.up.grad = torch.zeros_like(model.blocks[0].fc1.noble.up)
    stats = noble_fx.stats(model)
    assert stats["noble/blocks.0.fc1/grad/up"] == 0.0
    assert "noble/blocks.0.fc1/grad/down" not in stats
    assert "noble/blocks.0.fc2/grad/up" not in stats


def test_a_branch_whose_gradient_is_left_over_and_that_is_frozen_now():
    model = transformed("modules")
    stepped(model)
    noble_fx.set_trainable(model, "base")
    assert not any("/grad/down" in key for key in noble_fx.stats(model))


@pytest.mark.parametrize("act", ["gelu", "swiglu", "identity"])
def test_other_activations_have_their_own_roles(act):
    model = transformed("modules", act=act)
    stats = noble_fx.stats(model, seen=stepped(model))
    assert {"noble/total/grad/down", "noble/total/grad/up", "noble/total/share"} <= stats.keys()
    assert not any("frequency" in key for key in stats)
    assert ("noble/total/norm/mixer" in stats) == (act == "swiglu")


def test_bfloat16_counts_in_float32():
    model = transformed("modules").to(torch.bfloat16)
    stepped(model)
    expected = length(model.blocks[0].fc1.noble.up.grad for _ in range(1))
    assert noble_fx.stats(model)["noble/blocks.0.fc1/grad/up"] == pytest.approx(expected, rel=1e-5)


def experts():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 8, 4))

        def forward(self, x):
            return torch.bmm(x, self.w)

    x = torch.randn(3, 5, 8)
    model = noble_fx.transform(Experts(), rank=2, select="all", capture="export", example_inputs=x, seed=0)
    return model, x


def test_stacked_experts_are_one_site():
    model, x = experts()
    with noble_fx.watching(model) as seen:
        model(x).square().mean().backward()
    stats = noble_fx.stats(model, seen=seen)
    assert stats["noble/w/share"] == stats["noble/total/share"]
    downs = [branch.down for branch in model.noble["w"]]
    assert stats["noble/w/norm/down"] == pytest.approx(length(downs), rel=1e-5)
    assert stats["noble/w/grad/down"] == pytest.approx(length(p.grad for p in downs), rel=1e-5)


WRAPPED = {
    "DDP": lambda model, mesh: DistributedDataParallel(model),
    "FSDP2": fsdp2,
    "compiled": lambda model, mesh: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_wrapped_model_has_the_same_numbers_and_keys(wrap):
    model = transformed("modules")
    expected = noble_fx.stats(model, seen=stepped(model))
    with one_rank() as mesh:
        wrapped = WRAPPED[wrap](transformed("modules"), mesh)
        optimizer = torch.optim.SGD(noble_fx.param_groups(wrapped, lr=0.0))
        stats = noble_fx.stats(wrapped, optimizer, stepped(wrapped, optimizer))
    assert {key: value for key, value in stats.items() if "/lr/" not in key} == pytest.approx(expected, rel=1e-5)


def test_beside_a_parallel_plan():
    with one_rank() as mesh:
        model = noble_fx.transform(tensor_parallel(tiny(), mesh), rank=4, seed=0)
        stats = noble_fx.stats(model, seen=stepped(model))
    plain = noble_fx.transform(tiny(), rank=4, seed=0)
    assert stats == pytest.approx(noble_fx.stats(plain, seen=stepped(plain)), rel=1e-4)


def test_fsdp1_is_asked_to_put_its_parts_together():
    with first_of_two():
        model = fsdp1(transformed("modules"))
        with pytest.raises(ConfigError, match="summon_full_params"):
            noble_fx.stats(model)


def test_rates_whose_ratios_were_lost_are_warned_of_once():
    model = transformed("modules")
    optimizer = torch.optim.SGD(noble_fx.param_groups(model, lr=0.01))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with pytest.warns(UserWarning, match="scale_lr"):
        noble_fx.stats(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noble_fx.stats(model, optimizer)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (tiny, {}, "no branches"),
        (lambda: transformed("modules").to("meta"), {}, "has no values yet"),
        (lambda: transformed("modules"), {"seen": {}}, "must be what"),
        (lambda: transformed("modules"), {"optimizer": 3}, "has no param_groups"),
        (lambda: transformed("modules"), {"per_site": "no"}, "per_site='no'"),
    ],
    ids=["plain", "meta", "seen", "optimizer", "flag"],
)
def test_what_cannot_be_is_refused(make, settings, message):
    with pytest.raises(ConfigError, match=message):
        noble_fx.stats(make(), **settings)


def test_shares_of_another_model_are_refused():
    model, other = transformed("modules"), transformed("modules")
    seen = stepped(model)
    with pytest.raises(ConfigError, match=r"seen is of another model; give stats the model that noble_fx.watching"):
        noble_fx.stats(other, seen=seen)
    for same in (model, torch.compile(model)):
        assert noble_fx.stats(same, seen=seen)["noble/total/share"] == seen.share
    assert pickle.loads(pickle.dumps(seen)).shares == seen.shares

"""σ of several branches at once is what each gives of its own rows; what is not alike is not taken together."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from noble_fx import PRESETS
from noble_fx.branches.activations import _ZOO, build_activation, evaluate
from noble_fx.branches.grouped import Dense, Gathered, Groups, Sorted
from noble_fx.branches.stacked_sigma import alike, evaluate_all, is_changed, same_tensors

RANK = 4
EXPERTS, OFFSETS = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([2, 2, 5], dtype=torch.int32)


def sigmas(name: str = "cosnet", preset: str = "paper") -> list[nn.Module]:
    torch.manual_seed(0)
    return [build_activation(name, RANK, PRESETS[preset]) for _ in range(3)]


@pytest.mark.parametrize("name", _ZOO)
@pytest.mark.parametrize("groups", [Sorted(OFFSETS, EXPERTS), Gathered(EXPERTS)], ids=["sorted", "gathered"])
def test_the_whole_zoo(name, groups):
    acts = [act.double() for act in sigmas(name, "reference" if name == "cosnet_double" else "paper")]
    h = torch.randn(5, RANK, dtype=torch.float64)
    assert alike(acts)
    expected = torch.cat([evaluate(acts[0], h[:2]), evaluate(acts[2], h[2:])])
    torch.testing.assert_close(evaluate_all(acts, h, groups), expected, rtol=1e-12, atol=1e-12)


def test_dense():
    acts, h = sigmas(), torch.randn(2, 3, 5, RANK)
    expected = torch.stack([evaluate(act, h[:, e]) for e, act in enumerate(acts)], dim=1)
    torch.testing.assert_close(evaluate_all(acts, h, Dense()), expected)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_in_float32_whatever_the_dtype(stored, autocast):
    acts, h = [act.to(stored) for act in sigmas()], 20 * torch.randn(5, RANK, dtype=torch.bfloat16)
    groups: Groups = Sorted(OFFSETS, EXPERTS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = evaluate_all(acts, h, groups)
    assert found.dtype == torch.bfloat16
    expected = torch.cat([evaluate(acts[0], h[:2]), evaluate(acts[2], h[2:])])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda act: act.first.register_forward_hook(lambda *args: None),
        lambda act: act.register_forward_pre_hook(lambda *args: None),
        lambda act: setattr(act.mixer, "forward", lambda h: h),
        lambda act: parametrize.register_parametrization(act.mixer, "weight", nn.Identity()),
        lambda act: act.append(nn.Identity()),
        lambda act: setattr(act, "second", nn.Tanh()),
        lambda act: setattr(act.mixer, "bias", nn.Parameter(torch.zeros(RANK))),
    ],
)
def test_one_that_was_changed_is_not_like_the_others(change):
    acts = sigmas()
    acts[2] = copy.deepcopy(acts[2])
    assert alike(acts)
    change(acts[2])
    assert not alike(acts)


def test_settings_count_and_what_nobody_knows_is_never_alike():
    assert not alike([nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)])
    assert not alike([nn.GELU(), nn.GELU("tanh")])
    assert not alike([nn.Softsign(), nn.Softsign()])
    assert not alike([type("Own", (nn.Tanh,), {})() for _ in range(2)])
    flipped, plain = sigmas("flip_silu")[0], sigmas("neg_silu")[0]
    assert not alike([flipped, plain])


def test_tensors_of_one_shape_or_none():
    layers = [nn.Linear(3, 3), nn.Linear(3, 3)]
    assert same_tensors(layers, "weight")
    assert same_tensors(layers, "absent")
    assert not same_tensors([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)], "bias")
    assert not same_tensors([nn.Linear(3, 3), nn.Linear(3, 4)], "weight")
    assert not is_changed(layers[0])

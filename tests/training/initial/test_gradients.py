"""Gradients of a base model over batches, without a trace of them left."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.initial.gradients import summed_gradients


def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)).double()
    noble_fx.transform(model, rank=2, act="identity", select="all", seed=0)
    for layer in (model[0], model[2]):
        layer.weight.requires_grad_(False)
    return model


def loss(model, batch):
    return model(batch).square().sum()


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(7, 6, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_it_is_the_sum_of_the_base_models_and_leaves_nothing():
    model = made().train()
    weights = {"0": model[0].weight, "2": model[2].weight}
    found = summed_gradients(model, weights, loss, iter(batches()))
    with noble_fx.disabled(model):
        plain = [each.detach().clone().requires_grad_() for each in weights.values()]
        total = sum(
            torch.func.functional_call(model, {"0.weight": plain[0], "2.weight": plain[1]}, (batch,)).square().sum()
            for batch in batches()
        )
    for own, wanted in zip(found.values(), torch.autograd.grad(total, plain), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(weight.requires_grad for weight in weights.values())
    assert model.training


@pytest.mark.parametrize(
    ("wrong", "given", "message"),
    [
        (loss, [], "no batch has reached '0'"),
        (lambda model, batch: 3.0, batches(1), r"loss\(model, batch\) gave 3\.0"),
        (lambda model, batch: model(batch), batches(1), "must give a scalar"),
        (lambda model, batch: model(batch).sum().detach(), batches(1), "with a gradient"),
        (lambda model, batch: model[0](batch).sum(), batches(1), "no batch has reached '2'"),
    ],
)
def test_what_is_refused(wrong, given, message):
    model = made()
    weights = {"0": model[0].weight, "2": model[2].weight}
    with pytest.raises(ConfigError, match=message):
        summed_gradients(model, weights, wrong, given)
    assert not any(weight.requires_grad for weight in weights.values())

"""Kernels by kind of layer; a way is told only where it was measured."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.explaining import kernels
from noble_fx.explaining.kernels import kernel_accounts
from tests.models import Gamma

pytest.importorskip("triton")


def branches(**settings):
    model = noble_fx.transform(nn.Sequential(*(nn.Linear(64, n) for n in (48, 48, 32))), rank=8, **settings)
    return [(layer.noble, True) for layer in model]


def test_one_account_for_each_kind_of_layer():
    wide, narrow = kernel_accounts(branches())
    assert (wide.sites, wide.in_features, wide.out_features, wide.rank) == (2, 64, 48, 8)
    assert (wide.act, wide.dtype, narrow.sites) == ("cosnet", "float32", 1)
    assert "linear_up_forward" in wide.kernels
    assert set(wide.forward) >= {"kernel", "vendor"}
    assert "kernel + vendor" in wide.backward


def test_a_layer_without_kernels_has_no_account():
    assert kernel_accounts(branches(act=Gamma)) == ()


def test_the_way_that_was_measured(monkeypatch):
    (account, _) = kernel_accounts(branches())
    assert account.chosen == {}
    layer = kernels._layer(branches()[0][0], True)
    title = kernels.kernels_on(torch.device("cpu"), layer).title
    asked = {f"forward, 64 rows or fewer, {title}, a GPU": ("vendor",), "forward, 64 rows or fewer, other": ("kernel",)}
    monkeypatch.setattr(kernels, "answers", lambda: asked)
    (account, other) = kernel_accounts(branches())
    assert account.chosen == {"forward, 64 rows or fewer, a GPU": "vendor"}
    assert other.chosen == {}
    assert account.to_dict()["forward"] == list(account.forward)

"""Which layers have kernels: the tensors must be what a kernel takes for granted."""

from dataclasses import replace

import pytest
import torch

from noble_fx.codegen.plan import Layer
from noble_fx.errors import Refusal
from noble_fx.ops import available
from noble_fx.ops.operands import Operands
from tests.fused_layer import arguments, layer_of

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(available, "gpu_of", lambda device: available.Gpu("interpreter", 1 << 16))


def kernels(**others):
    layer = layer_of()
    operands = Operands.of_linear(*arguments(layer, torch.randn(3, 40)))
    (site,) = operands.sites
    return available.kernels_for(Operands(operands.x, (site._replace(**others),), operands.key), True, True)


def test_a_layer_as_it_should_be_has_some():
    assert kernels() is not None


@pytest.mark.parametrize(
    "others",
    [
        {"up": torch.zeros(71, 12)},
        {"bias": torch.zeros(71)},
        {"down": torch.zeros(12, 39)},
        {"down_bias": torch.zeros(1)},
        {"weight": torch.zeros(72, 40).double()},
        {"up": torch.zeros(72, 12, device="meta")},
    ],
    ids=lambda others: next(iter(others)),
)
def test_other_shapes_dtypes_and_devices_are_left_to_pytorch(others):
    assert kernels(**others) is None


def test_where_no_gpu_is_there_is_none(monkeypatch):
    monkeypatch.setattr(available, "gpu_of", lambda device: None)
    assert kernels() is None


def test_kernels_on_a_device_that_has_none_are_those_of_an_sm_80(monkeypatch):
    monkeypatch.setattr(available, "gpu_of", lambda device: None)
    branch = layer_of().noble
    sizes = branch.in_features, (branch.out_features,), branch.rank
    layer = Layer(*sizes, branch.key, torch.float32, torch.float32)
    found = available.kernels_on(torch.device("cpu"), layer)
    assert found.layer == layer
    assert isinstance(available.kernels_on(torch.device("cpu"), replace(layer, dtype=torch.float64)), Refusal)

"""A direction says what it does from sizes, strides and dtypes alone."""

import gc
import weakref

import pytest
import torch

from noble_fx.ops import available, direct, directions
from noble_fx.ops.directions import backward_direction, forward_direction
from noble_fx.runtime.layer_kernels import DESCRIPTORS
from tests.fused_layer import arguments, group_arguments, layer_of, small_layers, strided

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    monkeypatch.setattr(available, "gpu_of", lambda device: available.Gpu("cuda", 1 << 17))


def flat_of(layer, x) -> list:
    return direct.flat_of_linear(arguments(layer, x))


def test_results_have_the_shapes_of_the_call():
    direction = forward_direction(flat_of(layer := layer_of(), torch.randn(2, 3, 40)), 1, layer.noble.key, True)
    assert (direction.rows, direction.shapes) == (6, {"y": (2, 3, 72), "h": (2, 3, 12)})
    assert direction.needed is None
    assert list(direction.call(direction.variants[1]).results) == ["y", "h"]


def test_of_a_group_h_is_one_tensor():
    given = group_arguments(small_layers(), torch.randn(2, 3, 9))
    direction = forward_direction(direct.flat_of_group(given), 3, given[-1], True)
    assert direction.shapes == {"y_0": (2, 3, 7), "y_1": (2, 3, 4), "y_2": (2, 3, 4), "h": (3, 2, 3, 3)}


@pytest.mark.parametrize(
    ("x", "step"),
    [(torch.randn(6, 40), None), (torch.randn(2, 3, 40), "as_rows"), (strided(6, 40), "contiguous")],
    ids=["rows", "batched", "transposed"],
)
def test_operands_are_laid_out_as_kernels_read_them(x, step):
    direction = forward_direction(flat_of(layer := layer_of(), x), 1, layer.noble.key, True)
    assert [getattr(found, "__name__", "") for found in direction.prepare.values()] == ([step] if step else [])
    assert direction.operands["x"].stride(-1) == 1
    assert direction.operands["x"].shape == (6, 40)


def test_gradients_come_in_the_order_of_the_operands_in_every_variant():
    layer, x = layer_of(), torch.randn(6, 40)
    flat = flat_of(layer, x)
    needs = [True] * len(flat)
    needs[3] = False
    direction = backward_direction([torch.randn(6, 72)], torch.randn(6, 12), flat, 1, layer.noble.key, needs)
    wanted = [name for name, need in zip(directions.names_of(direction.kernels).flat(), needs, strict=True) if need]
    for variant in direction.variants[0]:
        assert list(direction.call(variant).results) == wanted


@pytest.mark.parametrize(
    ("x", "described"),
    [
        (torch.randn(6, 40).bfloat16(), True),
        (torch.randn(6, 48).bfloat16()[:, :40], True),
        (torch.randn(6, 44).bfloat16()[:, :40], False),  # rows of 88 bytes
        (torch.randn(40).bfloat16().expand(6, 40), False),
    ],
    ids=["rows", "slices", "odd slices", "one row"],
)
def test_descriptors_are_for_rows_at_multiples_of_16_bytes(monkeypatch, x, described):
    monkeypatch.setattr(available, "gpu_of", lambda device: available.Gpu("cuda", 1 << 17, descriptors=True))
    layer = layer_of("gelu", rank=16).bfloat16()
    direction = forward_direction(flat_of(layer, x), 1, layer.noble.key, True)
    assert ((DESCRIPTORS,) in direction.variants[0]) == described
    assert DESCRIPTORS not in direction.variants[1]


def test_a_question_is_of_a_bucket_of_rows():
    direction = forward_direction(flat_of(layer := layer_of(), torch.randn(6, 40)), 1, layer.noble.key, True)
    assert direction.question(5) == direction.question(8) != direction.question(9)


def test_a_shadow_keeps_nobodys_numbers():
    layer, x = layer_of(), torch.randn(6, 40)
    shadow = forward_direction(flat_of(layer, x), 1, layer.noble.key, True).shadowed()
    kept = weakref.ref(x), weakref.ref(layer.weight)
    key = layer.noble.key
    del layer, x
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    assert shadow.kernels.layer.act == key
    assert shadow.operands["weight"].stride() == (40, 1)


def test_no_rows_and_no_gpu_have_no_direction(monkeypatch):
    layer = layer_of()
    assert forward_direction(flat_of(layer, torch.randn(0, 40)), 1, layer.noble.key, True) is None
    monkeypatch.setattr(available, "gpu_of", lambda device: None)
    assert forward_direction(flat_of(layer, torch.randn(3, 40)), 1, layer.noble.key, True) is None

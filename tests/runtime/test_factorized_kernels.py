"""What the directions of a factorized layer do, as data; their numbers are in tests/ops/test_factorized_cuda.py."""

import pytest
import torch

from noble_fx import NobleLinear
from noble_fx.codegen.plan import SHARED_BYTES, Layer
from noble_fx.runtime.call import Launch, Plain, Product
from noble_fx.runtime.factorized_kernels import factorized_kernels
from noble_fx.runtime.layer_kernels import KERNEL, VENDOR

pytest.importorskip("triton")


def kernels(base_rank=24):
    key = NobleLinear.build(40, 72, rank=12).noble.key
    layer = Layer(40, (72,), 12, key, torch.bfloat16, torch.bfloat16)
    return factorized_kernels(layer, base_rank, "cuda", SHARED_BYTES["sm_90"], False)


def operands(**more):
    shapes = {"x": (5, 40), "base_down": (24, 40), "base_up": (72, 24), "bias": (72,), "down": (12, 40), "up": (72, 12)}
    return {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in (shapes | more).items()}


def named(call, step):
    if isinstance(step, Launch):
        return step.kernel.name
    return {Plain: "plain", Product: "product"}.get(type(step), type(step).__name__)


def test_forward_is_two_thin_products_and_the_branch():
    made = kernels()
    given = operands() | {name: torch.empty(12, 12) if "weight" in name else torch.empty(12) for name in made.act}
    call = made.forward(given, (KERNEL,))
    assert [named(call, step) for step in call.steps] == ["plain", "bottleneck_forward", "linear_up_forward"]
    assert list(call.results) == ["y", "z", "h"]
    assert [named(call, step) for step in made.forward(given, (VENDOR,), keep_h=False).steps][-2:] == [
        "plain",
        "product",
    ]
    assert list(made.forward(given, (VENDOR,), keep_h=False).results) == ["y"]


def test_no_kernel_is_as_wide_as_both_bottlenecks():
    made = kernels()
    assert made.layer.rank == made.outer.layer.rank == made.inner.layer.rank == 12
    assert (made.outer.layer.in_features, made.inner.layer.out_features) == (24, (24,))
    assert "rank 24" in made.title


def test_variants_are_products_by_a_kernel_or_the_vendor():
    made = kernels()
    assert made.forward_variants()[0] == [(KERNEL,), (VENDOR,)]
    needs = {"x": False, "up": False, "down": False}
    assert made.backward_variants(needs) == ([(VENDOR, VENDOR)], (VENDOR, VENDOR))

"""Partial sums added up, to gradients of every shape, for one site and several."""

import pytest
import torch

from noble_fx.codegen.kernels.reduce import Gradient, reduce_partials
from noble_fx.codegen.plan import Layer, make_plan
from noble_fx.runtime.launch import launch

GRADIENTS = [Gradient("d_a", (12,), "fp32"), Gradient("d_b", (5, 30), "fp32"), Gradient("d_c", (), "fp32")]


@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("rows", [1, 32, 33])
@pytest.mark.parametrize("counted", [True, False])
def test_sums(sites, rows, counted):
    layer = Layer(20, (24,) * sites, 12, "identity-0123", torch.float32, torch.float32)
    plan = make_plan(layer, "interpreter")
    width = sum(gradient.size for gradient in GRADIENTS)
    kernel = reduce_partials("sums", layer, "partials", [GRADIENTS] * sites, "", rows if counted else "programs")
    tensors = {layer.name("partials", site): torch.randn(rows, width) for site in range(sites)}
    for gradient in GRADIENTS:
        tensors |= {layer.name(gradient.tensor, site): torch.full(gradient.shape, torch.nan) for site in range(sites)}
    launch(plan, kernel, 1, tensors, **({} if counted else {"programs": rows}))
    for site in range(sites):
        sums = tensors[layer.name("partials", site)].double().sum(0).split([gradient.size for gradient in GRADIENTS])
        for gradient, truth in zip(GRADIENTS, sums, strict=True):
            result = tensors[layer.name(gradient.tensor, site)]
            torch.testing.assert_close(result.double(), truth.view(gradient.shape), rtol=1e-5, atol=1e-5)


def test_no_condition_that_is_always_true():
    layer = Layer(20, (24, 24), 12, "identity-0123", torch.float32, torch.float32)
    even = [Gradient("d_a", (128,), "fp32"), Gradient("d_b", (128,), "fp32")]
    source = reduce_partials("sums", layer, "partials", [even, even], "", 8).source
    assert ">= 0" not in source
    assert "- 0" not in source
    assert source.count("column[None, :] <") == 0

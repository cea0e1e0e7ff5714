"""The kernels of a factorized layer on a GPU, against the eager maths in float64. Without a GPU all are skipped.

What they compute is also tested without one, under Triton's interpreter (`tests/ops/test_factorized_cuda.py`).
"""

from collections.abc import Iterator

import pytest
import torch

from noble_fx.ops import available
from noble_fx.runtime.layer_kernels import KERNEL, VENDOR
from tests.factorized_layer import check, factorized_layer, take
from tests.fused_layer import launches_noted

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: these tests were not run")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def launched(tmp_path, monkeypatch) -> Iterator[list[str]]:
    """The kernels that were launched."""
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    with launches_noted() as names:
        yield names
        assert available._refused == {}, "the GPU refused a kernel, and PyTorch operators were tested instead"


@pytest.mark.parametrize(("product", "weights"), [(KERNEL, KERNEL), (VENDOR, VENDOR), (KERNEL, VENDOR)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "base_rank"), [(16, 96), (64, 200), (128, 17)])
def test_ranks_dtypes_and_variants(monkeypatch, rank, base_rank, dtype, product, weights, launched):
    take(monkeypatch, product, weights)
    layer = factorized_layer(in_features=384, out_features=272, rank=rank, base_rank=base_rank).to("cuda", dtype)
    check(layer, torch.randn(1000, 384, device="cuda").to(dtype), scale=2)
    assert "bottleneck_forward" in launched


def test_measured_and_frozen():
    layer = factorized_layer(in_features=256, out_features=320, rank=64, base_rank=96).to("cuda", torch.bfloat16)
    layer.base.requires_grad_(False)
    layer.noble.down.requires_grad_(False)
    check(layer, torch.randn(2, 300, 256, device="cuda", dtype=torch.bfloat16), scale=2)


def test_compiled_it_is_the_same():
    layer = factorized_layer(in_features=256, out_features=320, rank=64, base_rank=96).cuda()
    x = torch.randn(300, 256, device="cuda")
    torch.testing.assert_close(torch.compile(layer)(x), layer(x), rtol=1e-3, atol=1e-3)

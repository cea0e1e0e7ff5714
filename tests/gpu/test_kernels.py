"""The generated kernels on a GPU, against the eager branch in float64. Without a GPU every test here is skipped.

What they compute is also tested without one, under Triton's interpreter (`tests/ops/test_cuda.py`), and that they
compile, for GPUs that are not there (`tests/codegen/report/test_resources.py`). Here are the things that only a GPU
shows: the compiled code's numbers, streams, CUDA graphs, torch.compile, and measuring.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import noble_fx
from noble_fx import NobleLinear, schema
from noble_fx.ops import available
from noble_fx.ops.operands import Operands
from noble_fx.runtime import autotune
from noble_fx.runtime.layer_kernels import KERNEL, VENDOR
from tests.fused_layer import (
    arguments,
    check,
    check_group,
    exact_of,
    forget,
    launches_noted,
    layer_of,
    near,
    strided,
    take,
)

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: these tests were not run")

VARIANTS = [(product, weights) for product in (KERNEL, VENDOR) for weights in (VENDOR, KERNEL)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def launched(tmp_path, monkeypatch) -> Iterator[list[str]]:
    """The kernels that were launched."""
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    with launches_noted() as names:
        yield names
        assert available._refused == {}, "the GPU refused a kernel, and PyTorch operators were tested instead"


def on_gpu(dtype: torch.dtype = torch.bfloat16, **settings: object) -> NobleLinear:
    return layer_of(**{"in_features": 256, "out_features": 320, "rank": 64, **settings}).to("cuda", dtype)


def rows(count: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(count, width, device="cuda").to(dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 12, 16, 64, 100, 128, 200, 256])
def test_ranks_dtypes_and_variants(monkeypatch, rank, dtype, variant, launched):
    take(monkeypatch, variant)
    check(on_gpu(dtype, in_features=384, out_features=272, rank=rank), rows(1000, 384, dtype), scale=2)
    assert "bottleneck_forward" in launched


@pytest.mark.parametrize("act", [name for name in noble_fx.activation_names() if name != "identity"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(act, dtype):
    check(on_gpu(dtype, act=act), rows(300, 256, dtype), scale=2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "shape", [(1, 32, 48), (127, 1000, 999), (129, 96, 2049), (4097, 768, 3072), (16_384, 1024, 1024)]
)
def test_sizes_that_are_no_multiples_of_tiles(monkeypatch, shape, variant):
    take(monkeypatch, variant)
    count, inputs, outputs = shape
    check(on_gpu(in_features=inputs, out_features=outputs, rank=16), rows(count, inputs), scale=2)


INPUTS = {
    "batched": lambda: torch.randn(2, 3, 50, 256, device="cuda"),
    "transposed": lambda: strided(300, 256).cuda(),
    "part of a wider tensor": lambda: torch.randn(300, 700, device="cuda")[:, 100:356],
    "at an odd address": lambda: torch.randn(300 * 256 + 1, device="cuda")[1:].view(300, 256),
    "every other row": lambda: torch.randn(600, 256, device="cuda")[::2],
    "one row for all": lambda: torch.randn(1, 256, device="cuda").expand(300, 256),
    "no rows": lambda: torch.randn(0, 256, device="cuda"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", list(INPUTS))
def test_inputs_of_any_layout(monkeypatch, name, variant):
    take(monkeypatch, variant)
    check(on_gpu(torch.float32), INPUTS[name]())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("outputs", [(256, 64, 64), (512, 512)])
@pytest.mark.parametrize("rank", [16, 64, 200])
def test_groups(monkeypatch, rank, outputs, variant, launched):
    take(monkeypatch, variant)
    layers = [on_gpu(out_features=columns, rank=rank, in_features=320) for columns in outputs]
    check_group(layers, rows(700, 320), range(len(outputs)), scale=2)
    assert launched


def test_tf32_is_used_where_pytorch_is_told_to(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    take(monkeypatch, VARIANTS[0])
    layer = on_gpu(torch.float32)
    x = rows(300, 256, torch.float32)
    kernels = available.kernels_for(Operands.of_linear(*arguments(layer, x)), True, True)
    assert kernels is not None
    assert kernels.plan.precision == "tf32"
    check(layer, x, scale=200)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, launched):
    layer, x, dy = on_gpu(torch.float32), rows(300, 256, torch.float32), rows(300, 320, dtype)
    with torch.autocast("cuda", dtype=dtype):
        y = layer(x)
    y.backward(dy)
    assert y.dtype == dtype
    assert "bottleneck_backward" in launched
    truth = exact_of(layer)
    expected = truth(x.double())
    expected.backward(dy.double())
    near("y", y, expected, scale=2)
    for (name, found), wanted in zip(layer.named_parameters(), truth.parameters(), strict=True):
        assert found.grad.dtype == torch.float32
        near(name, found.grad.to(dtype), wanted.grad, scale=4)


def test_offsets_beyond_two_to_the_31():
    if torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("this GPU has less than 60 GB")
    layer = on_gpu(in_features=4096, out_features=64, rank=16)
    x = torch.randn((1 << 19) + 100, 4096, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 1 << 31
    with torch.no_grad():
        y, tail = layer(x), exact_of(layer)(x[-300:].double())
    near("y", y[-300:], tail, scale=2)
    del y
    layer = on_gpu(in_features=64, out_features=4096, rank=16)
    with torch.no_grad():
        x = x[:, :64].contiguous()
        near("y", layer(x)[-300:], exact_of(layer)(x[-300:].double()), scale=2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_runs_are_the_same_bits(monkeypatch, variant):
    take(monkeypatch, variant)
    layer, x, dy = on_gpu(), rows(3000, 256), rows(3000, 320)
    inputs = [x.requires_grad_(), *layer.parameters()]
    runs = [[layer(x), *torch.autograd.grad(layer(x), inputs, dy)] for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(one, two) for one, two in zip(runs[0], other, strict=True))


def test_another_stream_and_another_device():
    layer, x = on_gpu(), rows(300, 256)
    expected = exact_of(layer)(x.double())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = layer(x)
    stream.synchronize()
    near("y", y, expected, scale=2)
    if torch.cuda.device_count() > 1:  # launched there, though it is not the current device
        there = copy.deepcopy(layer).to("cuda:1")
        near("y", there(x.to("cuda:1")), expected.to("cuda:1"), scale=2)


def test_captured_in_a_cuda_graph_nothing_is_measured(monkeypatch, tmp_path):
    layer = on_gpu()
    x, dy = rows(512, 256).requires_grad_(), rows(512, 320)
    inputs = [x, *layer.parameters()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(layer(x), inputs, dy)
    torch.cuda.current_stream().wait_stream(stream)
    monkeypatch.setenv("NOBLE_FX_TUNE", "1")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
        grads = torch.autograd.grad(y, inputs, dy)
    assert autotune.answers() == {}
    assert not (tmp_path / "choices").exists()
    with torch.no_grad():
        x.copy_(rows(512, 256))
        dy.copy_(rows(512, 320))
    graph.replay()
    monkeypatch.setenv("NOBLE_FX_TUNE", "0")
    wanted = [layer(x), *torch.autograd.grad(layer(x), inputs, dy)]
    assert all(torch.equal(one, two) for one, two in zip([y, *grads], wanted, strict=True))


def test_the_choice_is_measured_once_and_right_whatever_it_is(monkeypatch, tmp_path, launched):
    monkeypatch.setenv("NOBLE_FX_TUNE", "1")
    layer, x = on_gpu(in_features=1024, out_features=1024), rows(2048, 1024)
    check(layer, x, scale=2)
    answers = autotune.answers()
    assert len(answers) == 2
    assert len(list((tmp_path / "choices").iterdir())) == 2
    count = len(launched)
    layer(x[:1500])  # of the same power of two
    assert autotune.answers() == answers
    assert len(launched) - count <= 2
    forget()
    layer(x)
    assert set(autotune.answers().items()) < set(answers.items())


@pytest.mark.parametrize("backend", ["inductor", "noble_fx"])
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled(backend, mode, launched):
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))
    model = noble_fx.transform(model, rank=32, capture="modules", seed=0).cuda()
    compiled = torch.compile(model, backend=backend, fullgraph=True, mode=mode)
    x = rows(512, 256, torch.float32)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast("cuda", torch.bfloat16):
            y = compiled(x)
        found = torch.autograd.grad(y.float().square().mean(), list(model.parameters()))
    with torch.autocast("cuda", torch.bfloat16):
        expected = model(x)
    wanted = torch.autograd.grad(expected.float().square().mean(), list(model.parameters()))
    assert "bottleneck_backward" in launched
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-2 * max(1e-3, other.abs().max().item()))


def test_opcheck():
    layer = on_gpu(torch.float32, in_features=48, out_features=40, rank=8)
    torch.library.opcheck(schema.LINEAR, arguments(layer, rows(30, 48, torch.float32).requires_grad_()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_stay_in_their_row(bad):
    layer, x = on_gpu(act="gelu"), rows(300, 256)
    x[17, 3] = bad
    assert torch.isfinite(layer(x)).all(dim=1).tolist() == [row != 17 for row in range(300)]


def test_float64_runs_pytorch_operators(launched):
    layer = layer_of().to("cuda", torch.float64)
    x = torch.randn(30, 40, device="cuda", dtype=torch.float64)
    torch.testing.assert_close(layer(x), exact_of(layer)(x))
    assert launched == []

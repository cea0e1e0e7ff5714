"""A route is found again by what decides how tensors are run, and by all of it."""

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from noble_fx.ops import available, direct, directions, routes
from noble_fx.runtime import autotune, execute
from noble_fx.runtime.layer_kernels import DESCRIPTORS, FIRST, KERNEL, VENDOR
from tests.fused_layer import arguments, check, exact_of, kernels_on_cpu, layer_of, near, take

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as conftest.py sets it where there is no GPU
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted here: tests/gpu compiles them")


@pytest.fixture(autouse=True)
def on_cpu(tmp_path) -> Iterator[list[str]]:
    with kernels_on_cpu(tmp_path) as launched:
        yield launched


def flat_of(layer, x) -> list:
    return direct.flat_of_linear(arguments(layer, x))


def test_the_same_layout_is_resolved_once(monkeypatch):
    asked = []
    kernels_for = directions.kernels_for
    monkeypatch.setattr(directions, "kernels_for", lambda *a: asked.append(a) or kernels_for(*a))
    layers = [layer_of(), layer_of()]  # of one shape, so of one route
    for _ in range(3):
        for layer in layers:
            layer(torch.randn(5, 40))
    assert len(asked) == 1
    layers[0](torch.randn(6, 40))
    assert len(asked) == 2


@pytest.mark.parametrize(
    "other",
    [
        lambda x: torch.cat([x, x], 1)[:, :40],
        lambda x: x.t().contiguous().t(),
        lambda x: x[None],
        lambda x: x.double(),
        lambda x: x[:2],
    ],
    ids=["rows apart", "transposed", "batched", "float64", "fewer rows"],
)
def test_another_layout_after_the_first_gives_its_own_numbers(other):
    layer, x = layer_of(), torch.randn(5, 40)
    y = layer(x)
    x = other(x)
    layer = layer.to(x.dtype)
    torch.testing.assert_close(layer(x).reshape(-1, 72), y.to(x.dtype)[: x.numel() // 40], rtol=1e-4, atol=1e-4)
    again = layer.float()(torch.randn(5, 40))
    assert again.shape == (5, 72)


def test_tf32_is_another_route(monkeypatch):
    layer, x = layer_of(), torch.randn(5, 40)
    with torch.no_grad():
        layer(x)
        count = len(routes._routes)
        monkeypatch.setattr(routes, "tf32_products", lambda: True)
        monkeypatch.setattr(available, "tf32_products", lambda: True)
        layer(x)
    assert len(routes._routes) == count + 1


def test_routes_keep_nobodys_tensors():
    layer, x = layer_of(), torch.randn(5, 40)
    layer(x).sum().backward()
    kept = [weakref.ref(x), weakref.ref(layer.weight)]
    del layer, x
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_ever_new_sizes_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(routes, "MOST", 3)
    layer = layer_of()
    with torch.no_grad():
        for rows in range(1, 9):
            layer(torch.randn(rows, 40))
    assert len(routes._routes) <= 3


def test_a_default_is_not_kept_and_a_measured_choice_is(monkeypatch):
    layer, x = layer_of(), torch.randn(5, 40)
    with torch.no_grad():
        layer(x)
        (route,) = routes._routes.values()
        assert route._chosen is None  # NOBLE_FX_TUNE=0 in these tests
        monkeypatch.setenv("NOBLE_FX_TUNE", "1")
        layer(x)
    assert route._chosen is not None


def test_a_route_that_was_refused_is_resolved_anew(monkeypatch):
    import noble_fx
    from noble_fx.runtime import execute

    layer, x = layer_of(), torch.randn(5, 40)
    expected = layer(x)

    def refuse(*arguments):
        raise noble_fx.KernelError("out of shared memory")

    with monkeypatch.context() as patch:
        patch.setattr(execute, "start", refuse)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert routes.forward(flat_of(layer, x), 1, layer.noble.key, True) is None  # refused once is refused for good


def test_gradients_are_at_their_operands_places(monkeypatch):
    take(monkeypatch, ("vendor", "kernel"))
    layer, x = layer_of(), torch.randn(5, 40)
    flat = flat_of(layer, x)
    with torch.no_grad():
        y, h = routes.forward(flat, 1, layer.noble.key, True)
        needs = [at % 2 == 0 for at in range(len(flat))]
        found = routes.backward([torch.randn_like(y)], h, flat, 1, layer.noble.key, needs)
    for gradient, tensor, need in zip(found, flat, needs, strict=True):
        assert (gradient is not None) == need
        assert gradient is None or gradient.shape == tensor.shape


@pytest.mark.parametrize("fastest", [(KERNEL, VENDOR), (KERNEL, KERNEL), (VENDOR, VENDOR), (FIRST, KERNEL)])
def test_what_is_fastest_need_not_be_the_default(fastest, monkeypatch):
    """The gradients of variants come in one order, and N = K here, so that no shape tells two of them apart."""
    monkeypatch.setenv("NOBLE_FX_TUNE", "1")
    monkeypatch.setattr(
        autotune, "measure", lambda variants, run, device: {v: float(v != fastest[: len(v)]) for v in variants}
    )
    check(layer_of(in_features=40, out_features=40, rank=40), torch.randn(6, 40))
    assert fastest in autotune.answers().values()


def test_threads_at_their_first_call(monkeypatch):
    """They resolve, measure nothing, and run side by side; only the interpreter itself cannot be shared."""
    one_at_a_time, launched = threading.Lock(), execute.start

    def start(*arguments):
        with one_at_a_time:
            return launched(*arguments)

    monkeypatch.setattr(execute, "start", start)
    layer, ready = layer_of(), threading.Barrier(6)
    inputs = [torch.randn(5 + at % 2, 40, requires_grad=True) for at in range(6)]

    def step(x):
        ready.wait()
        y = layer(x)
        return y, *torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.noble.up])

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(step, inputs))
    for x, of_thread in zip(inputs, found, strict=True):
        exact, x64 = exact_of(layer), x.detach().double().requires_grad_()
        y = exact(x64)
        truth = (y, *torch.autograd.grad(y.square().sum(), [x64, exact.weight, exact.noble.up]))
        for name, one, other in zip(("y", "dx", "dW", "dU"), of_thread, truth, strict=True):
            near(name, one, other)


@pytest.mark.parametrize("offset", [0, 1])
def test_descriptors_are_for_addresses_at_multiples_of_16_bytes(on_cpu, monkeypatch, offset):
    """Whatever was chosen: a descriptor of another address would be an error of the GPU's."""
    monkeypatch.setattr(available, "gpu_of", lambda device: available.Gpu("interpreter", 1 << 16, descriptors=True))
    monkeypatch.setenv("NOBLE_FX_TUNE", "1")
    monkeypatch.setattr(
        autotune, "measure", lambda variants, run, device: {v: float(DESCRIPTORS not in v) for v in variants}
    )
    layer = layer_of(rank=16).bfloat16()
    check(layer, torch.randn(6, 40).bfloat16())  # chosen here
    on_cpu.clear()
    layer.zero_grad()
    check(layer, torch.randn(6 * 40 + 8).bfloat16()[offset : offset + 240].view(6, 40))
    assert ("linear_up_forward_tma" in on_cpu) == (offset == 0)
    assert ("linear_backward_input_tma" in on_cpu) == (offset == 0)

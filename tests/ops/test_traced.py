"""A graph that is compiled for a GPU holds the kernels themselves, with the numbers of the eager branch in float64."""

import pytest
import torch
from torch import nn

from noble_fx import schema
from noble_fx.ops import available, routes, traced
from noble_fx.runtime import autotune
from noble_fx.runtime.layer_kernels import FIRST, KERNEL, VENDOR
from tests.fused_layer import check, exact_of, group_arguments, layer_of, near, small_layers, strided, take
from tests.traced_kernels import compiled, kernels_in_graphs, targets


@pytest.fixture(autouse=True)
def in_graphs(tmp_path):
    with kernels_in_graphs(tmp_path):
        yield


class Compiled(nn.Module):
    """A layer whose call is compiled; all else is the layer's own."""

    def __init__(self, layer, graphs, **settings):
        super().__init__()
        self.layer, self.run = layer, compiled(layer, graphs, **settings)

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("layer", "run") else getattr(self.layer, name)

    def named_parameters(self, *args, **kwargs):
        return self.layer.named_parameters(*args, **kwargs)

    def state_dict(self, *args, **kwargs):
        return self.layer.state_dict(*args, **kwargs)

    def forward(self, x):
        return self.run(x)


def kernels_of(graphs) -> list[str]:
    return [name for name in targets(graphs) if not name.startswith(("aten.", "<built-in"))]


@pytest.mark.parametrize("act", ["cosnet", "gelu", "swiglu_net"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_kernels_and_products(act, dtype):
    graphs: list = []
    check(Compiled(layer_of(act).to(dtype), graphs), torch.randn(2, 5, 40, dtype=dtype))
    assert kernels_of(graphs[:1])[0] == "bottleneck_forward"
    assert "bottleneck_backward" in kernels_of(graphs[1:])
    assert not [name for name in targets(graphs) if "noble_fx" in name]


@pytest.mark.parametrize("variant", [(KERNEL, VENDOR), (VENDOR, KERNEL), (FIRST, KERNEL)])
def test_every_variant(variant, monkeypatch):
    take(monkeypatch, variant)
    graphs: list = []
    check(Compiled(layer_of(), graphs), torch.randn(6, 40))
    names = {KERNEL: "linear_up_forward", FIRST: "branch_first_forward"}
    assert names.get(variant[0], "bottleneck_forward") in kernels_of(graphs[:1])


def test_without_gradients():
    layer, x, graphs = layer_of(), torch.randn(2, 3, 40), []
    with torch.no_grad():
        near("y", compiled(layer, graphs)(x), exact_of(layer)(x.double()))
    assert len(graphs) == 1


def test_rows_are_a_symbol():
    layer, graphs = layer_of(), []
    step = Compiled(layer, graphs, dynamic=True)
    for shape in ((2, 41), (3, 70), (5, 33)):
        layer.zero_grad()
        check(step, torch.randn(*shape, 40))
    assert len(graphs) == 2


@pytest.mark.parametrize("layout", [lambda x: x.transpose(0, 1), lambda x: strided(3, 7, 40), lambda x: x[:, ::2]])
def test_rows_lie_in_memory_as_they_like(layout):
    check(Compiled(layer_of(), []), layout(torch.randn(3, 8, 40)))


@pytest.mark.parametrize("used", [(0, 1, 2), (1,)])
def test_a_group_is_one_launch(used):
    layers, graphs = small_layers(), []
    x = torch.randn(2, 5, 9, requires_grad=True)
    y = compiled(lambda x: schema.LINEAR_GROUP(*group_arguments(layers, x)), graphs)(x)
    x64, exact = x.detach().double().requires_grad_(), [exact_of(layer) for layer in layers]
    truth = [layer(x64) for layer in exact]
    for i in range(3):
        near(f"y {i}", y[i], truth[i])
    sum(y[i].square().sum() for i in used).backward()
    sum(truth[i].square().sum() for i in used).backward()
    near("dx", x.grad, x64.grad)
    for i in used:
        pairs = zip(layers[i].named_parameters(), exact[i].parameters(), strict=True)
        for (name, mine), wanted in pairs:
            near(f"{i} {name}", mine.grad, wanted.grad)
    assert kernels_of(graphs[:1]).count("bottleneck_forward") == 1


def test_frozen_weights():
    layer, graphs = layer_of(), []
    layer.weight.requires_grad_(False)
    layer.noble.down.requires_grad_(False)
    x = torch.randn(5, 40, requires_grad=True)
    y = compiled(layer, graphs)(x)
    y.sum().backward()
    exact = exact_of(layer)
    x64 = x.detach().double().requires_grad_()
    exact(x64).sum().backward()
    near("dx", x.grad, x64.grad)
    near("U", layer.noble.up.grad, exact.noble.up.grad)
    assert layer.weight.grad is None


def test_what_has_no_kernels_is_pytorchs_operators(monkeypatch):
    monkeypatch.setattr(available, "gpu_of", lambda device: None)
    graphs: list = []
    check(Compiled(layer_of(), graphs), torch.randn(4, 40))
    assert kernels_of(graphs) == []


def on_this_gpu(monkeypatch):
    """As if the CPU were the GPU that the graph is for: stand-ins run interpreted."""
    monkeypatch.setattr(traced, "_is_here", lambda device: True)


def test_what_was_measured_is_taken(monkeypatch):
    on_this_gpu(monkeypatch)
    monkeypatch.setenv("NOBLE_FX_TUNE", "1")
    monkeypatch.setattr(
        autotune, "measure", lambda variants, run, device: {v: float(v[0] != FIRST) for v in variants if run(v)}
    )
    graphs: list = []
    check(Compiled(layer_of(), graphs), torch.randn(6, 40))
    assert "branch_first_forward" in kernels_of(graphs[:1])
    assert "branch_first_backward" in kernels_of(graphs[1:])


def test_looking_at_a_gpu_draws_from_nobodys_generator(monkeypatch):
    on_this_gpu(monkeypatch)
    layer, x = layer_of(), torch.randn(6, 40)
    before = torch.get_rng_state()
    compiled(layer, [])(x).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_refused_kernel_is_in_no_graph(monkeypatch, caplog):
    on_this_gpu(monkeypatch)
    monkeypatch.setattr(routes.Route, "run", lambda self, tensors: None)  # as it answers where a GPU refused
    graphs: list = []
    check(Compiled(layer_of(), graphs), torch.randn(4, 40))
    assert kernels_of(graphs) == []

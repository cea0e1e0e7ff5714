"""Compiled, an operator is what it does: PyTorch's operators on the CPU, kernels on a GPU; exported, it stays one."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.torch_versions import TorchDispatchMode
from tests.fused_layer import layer_of
from tests.traced_kernels import compiled, targets


def own_operators(graphs) -> set[str]:
    return {name for name in targets(graphs) if name.startswith("noble_fx.")}


def check_gradients(y, truth, inputs) -> None:
    dy = torch.randn_like(truth)
    found, wanted = (torch.autograd.grad(one, inputs, dy) for one in (y, truth))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("shape", [(3, 5, 40), (7, 40), (40,)])
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_layer_holds_none_of_our_operators(training, shape):
    layer, x, graphs = layer_of(), torch.randn(shape, requires_grad=training), []
    run = compiled(layer, graphs)
    with torch.set_grad_enabled(training):
        y = run(x)
        torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)
    if training:
        check_gradients(y, layer(x), [x, *layer.parameters()])
    assert len(graphs) == 1 + training
    assert own_operators(graphs) == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_in_every_dtype(dtype):
    layer, x = layer_of().to(dtype), torch.randn(6, 40, dtype=dtype)
    torch.testing.assert_close(compiled(layer, [])(x), layer(x))


def test_groups_come_apart_too():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(40, 40), nn.Linear(40, 24)

        def forward(self, x):
            return self.q(x).sum() * self.k(x).cos().sum()

    model = noble_fx.transform(Two(), rank=8, select=".*", capture="fx", seed=0)
    x, graphs = torch.randn(3, 40), []
    loss = compiled(lambda x: model(x), graphs)(x)
    check_gradients(loss, model(x), list(model.parameters()))
    assert own_operators(graphs) == set()


def test_rows_may_be_any_number():
    layer, graphs = layer_of(), []
    run = compiled(layer, graphs)
    for rows in (3, 7, 11):
        x = torch.randn(rows, 40)
        torch.testing.assert_close(run(x), layer(x), rtol=1e-5, atol=1e-5)
    assert len(graphs) <= 2 * 2  # once for the first size, once for any


def test_frozen_weights_keep_h_alone():
    layer, graphs = layer_of(), []
    layer.weight.requires_grad_(False)
    layer.noble.down.requires_grad_(False)
    x = torch.randn(5, 40, requires_grad=True)
    learning = [p for p in layer.parameters() if p.requires_grad]
    check_gradients(compiled(layer, graphs)(x), layer(x), [x, *learning])
    assert own_operators(graphs) == set()


@pytest.mark.parametrize("shape", [(2, 3, 40), (6, 40)])
def test_a_result_is_nobodys_view(shape):
    layer, x = layer_of(), torch.randn(shape)

    def changed(x):
        y = layer(x)
        y.mul_(2)
        y.view(6, 72)[0].add_(1)
        return y

    torch.testing.assert_close(compiled(changed, [])(x), changed(x), rtol=1e-5, atol=1e-5)
    check_gradients(compiled(changed, [])(x), changed(x), list(layer.parameters()))


def test_a_program_that_is_exported_keeps_the_operator():
    model = noble_fx.transform(nn.Sequential(nn.Linear(40, 24)), rank=8, select=".*", seed=0)
    (program,) = noble_fx.programs(model, (torch.randn(3, 40),))
    assert "noble_fx.linear" in str(program.graph_module.graph) or "noble_fx::linear" in program.code


def test_a_mode_of_the_users_sees_the_operator():
    """So does a policy of a selective checkpoint; what it says then holds for the pieces (`training/test_tools.py`)."""
    seen = []

    class Seen(TorchDispatchMode):
        @classmethod
        def ignore_compile_internals(cls):
            return True

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(str(operator))
            return operator(*args, **(kwargs or {}))

    with Seen(), torch.no_grad():
        layer_of()(torch.randn(3, 40))
    assert "noble_fx.linear.default" in seen

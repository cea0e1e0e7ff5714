"""An exported program's graph, flat and over the model's own tree."""

import pytest
import torch
from torch import fx, nn

from noble_fx.captures.plain_graph import plain_graph

aten = torch.ops.aten


def made(model: nn.Module, x: torch.Tensor) -> tuple[fx.Graph, dict]:
    constants: dict = {}
    module = torch.export.export(model, (x,), strict=False).module(check_guards=False)
    return plain_graph(module, model, constants, "eval"), constants


def run(model: nn.Module, graph: fx.Graph, constants: dict, x: torch.Tensor) -> torch.Tensor:
    root = nn.Module()
    root.__dict__.update(vars(model))
    for name, value in constants.items():
        setattr(root, name, value)
    (result,) = fx.GraphModule(root, graph)(x)
    return result


class WithConstant(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(4, 4), torch.arange(4.0)

    def forward(self, x):
        return self.linear(x) + self.table


class WithoutGrad(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            y = self.one(x).sin()
        return self.two(x) * y


@pytest.mark.parametrize("make", [WithConstant, WithoutGrad])
def test_it_computes_what_the_model_does_and_reads_the_models_own_names(make):
    torch.manual_seed(0)
    model, x = make(), torch.randn(3, 4)
    graph, constants = made(model, x)
    torch.testing.assert_close(run(model, graph, constants, x), model(x))
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    assert read == {name for name, _ in model.named_parameters()} | set(constants)
    assert not [node for node in graph.nodes if node.op == "call_module"]


def test_a_tensor_that_is_no_parameter_is_a_constant_of_its_mode():
    model = WithConstant()
    _, constants = made(model, torch.randn(3, 4))
    assert [name.startswith("_eval_") for name in constants] == [True]
    assert torch.equal(next(iter(constants.values())), model.table)


def test_what_ran_without_gradients_has_none_in_the_flat_graph():
    model, x = WithoutGrad(), torch.randn(3, 4, requires_grad=True)
    graph, constants = made(model, x)
    assert aten.detach.default in {node.target for node in graph.nodes}
    assert constants == {}
    run(model, graph, constants, x).sum().backward()
    assert [p.grad is not None for p in (model.one.weight, model.two.weight, x)] == [False, True, True]


def test_what_nothing_uses_is_not_read():
    class Unused(WithConstant):
        def forward(self, x):
            self.linear(x)
            return x + 1

    graph, constants = made(Unused(), torch.randn(3, 4))
    graph.eliminate_dead_code()
    assert constants == {}

"""A user's torch.export of a model that runs graphs is ordinary operators, as one of a model of modules is."""

import io

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.captures.table import captured
from noble_fx.captures.torch_export import export_program
from tests.models import loud


class Heads(nn.Module):
    """q and v read one input, so they are a group."""

    def __init__(self):
        super().__init__()
        self.q, self.v, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.out(self.norm(torch.relu(self.q(x)) * self.v(x)))


def made(capture):
    torch.manual_seed(0)
    given = {"example_inputs": (torch.randn(4, 8),)} if capture == "export" else {}
    return loud(noble_fx.transform(Heads(), rank=4, select=".*", seed=0, capture=capture, **given)).eval()


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_it_is_saved_loaded_and_the_same(capture):
    model, x = made(capture), torch.randn(4, 8)
    assert any("linear_group" in str(node.target) for _, g in graphs(model) for node in g.graph.nodes)
    program = torch.export.export(model, (x,))
    assert not any("noble_fx" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), model(x))


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_dynamo_cannot_export_it_and_what_can_is_named(capture):
    with pytest.raises(Exception, match="strict=False"):
        torch.export.export(made(capture), (torch.randn(4, 8),), strict=True)


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_a_changed_model_is_not_exported_as_it_was(capture):
    model = made(capture)
    model.q.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(Exception, match="q has other hooks"):
        torch.export.export(model, (torch.randn(4, 8),))


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_an_export_of_our_own_keeps_the_node(capture):
    program = export_program(made(capture), (torch.randn(4, 8),), {}, None)
    assert any("noble_fx.linear" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_inside_disabled_it_is_the_base_model(capture):
    model, x = made(capture), torch.randn(4, 8)
    with noble_fx.disabled(model):
        program, expected = torch.export.export(model, (x,)), model(x)
    torch.testing.assert_close(program.module()(x), expected)


def graphs(model):
    return [pair for capture, module in captured(model) for pair in capture.graphs(module).items()]

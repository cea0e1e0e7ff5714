"""What a captured model's graphs tell of their sites: the same as its layers would."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx.captures.table import captured
from noble_fx.training.looking.observed import observed
from noble_fx.training.looking.observed_graphs import called_modules
from tests.models import loud, tokens, transformed


def told(model, *args, **kwargs):
    calls = []

    def see(call):
        calls.append((call.site, call.y.detach(), sum(call.added()).detach(), dict(call.stages())))

    with observed(model, see):
        result = model(*args, **kwargs)
    return {site: rest for site, *rest in calls}, result


@pytest.mark.parametrize("fuse", [True, False], ids=["fused and grouped", "called"])
@pytest.mark.parametrize("capture", ["fx", "export"])
def test_it_is_told_what_the_modules_tell(capture, fuse):
    examples = {"example_inputs": (tokens(),)} if capture == "export" else {}
    expected, _ = told(transformed("modules").double(), tokens())
    model = transformed(capture, fuse=fuse, **examples)
    got, result = told(model, tokens())
    assert torch.equal(result, model(tokens()))
    assert got.keys() == expected.keys()
    for site, (output, added, stages) in expected.items():
        torch.testing.assert_close(got[site][0].double(), output, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got[site][1].double(), added, rtol=1e-4, atol=1e-4)
        assert list(got[site][2]) == (list(stages) if fuse else ["base output", "branch"])
        for part, tensor in got[site][2].items():
            torch.testing.assert_close(tensor.double(), stages[part], rtol=1e-4, atol=1e-4)


class Bare(nn.Module):
    """Stacked experts, a slice of a weight, a 1×1 convolution and an einsum, x [3, 5, 8] -> [5, 3, 4]."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 4))
        self.both, self.pixel = nn.Parameter(torch.randn(8, 4)), nn.Conv1d(4, 4, 1)
        self.last = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        y = torch.bmm(x, self.experts)
        y = F.linear(y, self.both[:4]) + F.linear(y, self.both[4:])
        y = self.pixel(y.transpose(1, 2)).transpose(1, 2)
        return torch.einsum("etk,kn->tne", y, self.last).transpose(1, 2)


def test_bare_parameters_and_parts_of_them():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    model = loud(noble_fx.transform(Bare(), rank=2, select="all", capture="export", example_inputs=x, seed=0))
    calls = []
    with observed(model, lambda call: calls.append((call.site, call.y, sum(call.added()), dict(call.stages())))):
        result = model(x)
    assert torch.equal(result, model(x))
    assert [site for site, *_ in calls] == ["experts", "both", "both", "pixel", "last"]
    expected = torch.bmm(x, model.experts) + model.noble["experts"](x)
    torch.testing.assert_close(calls[0][1], expected)
    halves = [model.noble["both"](expected, rows) for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(calls[1][2], halves[0])
    torch.testing.assert_close(calls[2][2], halves[1])
    for _, y, added, stages in calls:
        assert y.numel() == added.numel()
        torch.testing.assert_close(stages["branch"], added)
    for _, y, added, stages in (calls[0], calls[1], calls[2]):
        torch.testing.assert_close(stages["base output"] + added, y)


class WithAttention(nn.Module):
    """A layer that the graph takes to itself, and an attention that it calls as a module."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.first(x)
        return self.attention(x, x, x)[0]


def test_the_modules_that_a_graph_calls_are_layers_like_others():
    model = loud(noble_fx.transform(WithAttention(), rank=2, select="all", capture="fx"))
    ((capture, module),) = captured(model)
    called = {id(each) for graph in capture.graphs(module).values() for each in called_modules(graph)}
    assert id(model.attention) in called
    assert id(model.first) not in called
    x = torch.randn(2, 3, 8)
    for kwargs in ({"x": x}, {}):
        calls, result = told(model, *(() if kwargs else (x,)), **kwargs)
        assert list(calls) == ["first", "attention.in_proj_weight", "attention.out_proj"]
        assert torch.equal(result, model(x))

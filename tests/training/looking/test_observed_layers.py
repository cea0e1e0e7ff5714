"""What a layer that runs as a module tells of a call."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.training.looking.observed import observed
from tests.models import Block, loud, tiny, tokens


def told(model, *args, **kwargs):
    calls = []

    def see(call):
        calls.append((call, call.added(), dict(call.stages())))

    with observed(model, see):
        model(*args, **kwargs)
    return calls


class Falcon(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


LAYERS = {
    "fused": (lambda: nn.Linear(8, 6), {}, (3, 8)),
    "eager": (lambda: nn.Linear(8, 6), {"fuse": False}, (3, 8)),
    "own forward": (lambda: Falcon(8, 6, bias=False), {}, (3, 8)),
    "convolution": (lambda: nn.Conv2d(8, 6, 1, stride=2), {}, (2, 8, 5, 4)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_y_is_the_layer_and_what_the_branch_added(case):
    make, settings, shape = LAYERS[case]
    torch.manual_seed(0)
    model = loud(noble_fx.transform(nn.Sequential(make()), rank=4, select="all", seed=0, **settings)).double()
    x = torch.randn(shape, dtype=torch.float64)
    ((call, added, stages),) = told(model, x)
    with noble_fx.disabled(model):
        base = model(x)
    assert call.site == "0"
    assert call.x is x
    torch.testing.assert_close(call.y, model(x))
    torch.testing.assert_close(sum(added), model(x) - base)
    torch.testing.assert_close(stages["base output"], base)
    assert list(stages) == ["base output", "h", "σ", "branch"]
    assert stages["h"].shape[-1] == stages["σ"].shape[-1] == 4
    torch.testing.assert_close(stages["branch"].flatten().sort().values, sum(added).flatten().sort().values)


@pytest.mark.parametrize("same", [True, False])
def test_the_projections_of_an_attention(same):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    model = loud(noble_fx.transform(nn.ModuleDict({"a": layer}), rank=4, select="all", seed=0))
    x = torch.randn(2, 3, 16)
    y = x if same else torch.randn(2, 5, 16)
    calls = []
    with observed(model, lambda call: calls.append((call, call.added()))):
        layer(x, y, y)
    by_site = [call.site for call, _ in calls]
    assert by_site == ["a.in_proj_weight"] * (1 if same else 3) + ["a.out_proj"]
    for call, (added,) in calls[:-1]:
        assert call.y.shape == added.shape
    first, (added,) = calls[0]
    rows = slice(None) if same else slice(0, 16)
    base = nn.functional.linear(x, layer.in_proj_weight[rows], layer.in_proj_bias[rows])
    torch.testing.assert_close(first.y - added, base)


class Drawing(nn.Module):
    """A σ that draws, and counts how often it runs."""

    def __init__(self, rank):
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, h):
        self.runs += 1
        return nn.functional.dropout(h, 0.5, training=True)


def test_a_branch_that_runs_as_a_module_runs_once():
    model = loud(noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), rank=4, select="all", act=Drawing, seed=0))
    x, runs = torch.randn(3, 8), model[0].noble.act.runs
    runs.zero_()
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    calls = []
    with observed(model, lambda call: calls.append((call.y, call.added()))):
        got = model(x)
    assert runs == 2  # once outside, once inside
    assert torch.equal(got, expected)
    ((y, (added,)),) = calls
    torch.testing.assert_close(y - added, nn.functional.linear(x, model[0].weight, model[0].bias))


def test_a_branch_that_is_off_tells_nothing_and_a_keyword_is_an_input():
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), rank=4, select="all")
    with noble_fx.disabled(model):
        assert told(model, torch.randn(3, 8)) == []
    calls = []
    with observed(model, calls.append):
        model[0](input=torch.ones(3, 8))
    assert torch.equal(calls[0].x, torch.ones(3, 8))


def test_nested_rows_are_told_in_their_parts():
    model = loud(noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), rank=4, select="all"))
    parts = [torch.randn(2, 8), torch.randn(3, 8)]
    calls = []
    with observed(model, lambda call: calls.append(call.added())):
        model(torch.nested.nested_tensor(parts))
    ((first, second),) = calls
    torch.testing.assert_close(first, model[0].noble(parts[0]))
    torch.testing.assert_close(second, model[0].noble(parts[1]))


class Tupled(Block):
    """A block that counts its calls, and gives its hidden state first."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x), "cache"


def test_a_block_tells_of_its_hidden_state_and_runs_once():
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList([Tupled(16)])
    loud(noble_fx.transform(model, rank=4, scope="block", seed=0)).double().eval()
    model.forward = lambda x: model.layers[0](x)[0]
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    ((call, added, stages),) = told(model, x)
    assert model.layers[0].calls == 1
    assert call.site == "layers.0"
    torch.testing.assert_close(call.y, model(x))
    torch.testing.assert_close(stages["base output"] + added[0], call.y)
    assert list(stages) == ["base output", "h", "σ", "branch"]
    torch.testing.assert_close(stages["branch"], added[0])


def test_numbers_that_stop_being_finite_in_a_block_are_its_own():
    model = noble_fx.transform(tiny(), rank=4, scope="block", seed=0)
    model.blocks[1].norm.register_forward_hook(lambda _, args, y: y * torch.inf)
    found = noble_fx.find_nonfinite(model, tokens())
    assert (found.place, found.part) == ("blocks.1", "base output")

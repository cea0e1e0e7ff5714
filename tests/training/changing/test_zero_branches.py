import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from tests.models import tiny, tokens, transformed


@pytest.mark.parametrize("capture", ["modules", "fx"])
def test_the_base_model_exactly_and_u_learns(capture):
    model = transformed(capture)
    assert noble_fx.zero_branches(model) is model
    assert torch.equal(model(tokens()), tiny()(tokens()))
    model(tokens()).square().sum().backward()
    assert model.blocks[0].fc1.noble.up.grad.abs().max() > 0


def test_what_cannot_be_zero_changes_nothing():
    with pytest.raises(ConfigError, match="no branches"):
        noble_fx.zero_branches(tiny())
    model = transformed()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[1].fc2.noble, "up")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"'blocks.1.fc2' cannot be zero"):
        noble_fx.zero_branches(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_kind_that_does_not_say_how():
    class Plain(noble_fx.Branch):
        def __init__(self, in_features, out_features, rank, config, role="other"):
            super().__init__(in_features, out_features, rank, config, role)
            self.scale = nn.Parameter(torch.ones(out_features))

        def reset_parameters(self):
            nn.init.ones_(self.scale)

        def forward(self, x, rows=None):
            scale = self.scale if rows is None else self.scale[rows]
            return x.sum(-1, keepdim=True) * scale

    model = noble_fx.transform(tiny(), rank=2, branch=Plain, select="fc1")
    with pytest.raises(ConfigError, match="'Plain' do not say what makes them zero"):
        noble_fx.zero_branches(model)
    with pytest.raises(ConfigError, match="'Plain' do not say how their rank changes"):
        noble_fx.set_rank(model, 3)

"""A model that was looked at is as it was."""

import pytest
import torch
from torch import nn

from noble_fx.compressing.looking import looked_at


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.last = None

    def forward(self, x):
        self.calls += 1
        self.last = x
        return x + torch.rand_like(x)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_modes_attributes_buffers_and_random_numbers(error):
    model = Counting().train()

    def look():
        with looked_at(model):
            assert not model.training
            model(torch.ones(2))
            if error:
                raise error

    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    if error:
        with pytest.raises(error):
            look()
    else:
        look()
    assert model.training
    assert model.calls == 0
    assert model.last is None
    assert torch.equal(torch.rand(2), expected)

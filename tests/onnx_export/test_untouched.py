"""Random generators draw on from where they were, whatever happened inside."""

import random

import numpy
import pytest
import torch
from torch import nn

from noble_fx.onnx_export.untouched import random_states_kept


def seed():
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


def draw():
    return torch.rand(()).item(), random.random(), numpy.random.rand()


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_same_numbers_come_next(error):
    model = nn.Linear(2, 2)
    seed()
    expected = draw()
    seed()
    try:
        with random_states_kept(model):
            draw()
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert draw() == expected

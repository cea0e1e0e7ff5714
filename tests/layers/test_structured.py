"""A layer whose W has another form: what it computes, and what it still answers."""

import pytest
import torch
from torch import nn

from noble_fx.bases.low_rank import LowRank
from noble_fx.errors import CaptureError
from noble_fx.layers.restructure import matrix_of, structure


def layer(bias=True):
    torch.manual_seed(0)
    made = nn.Linear(12, 20, bias=bias).double()
    base = LowRank(12, 20, 3).double()
    base.fill(matrix_of(made))
    structure(made, base, made.bias)
    return made


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_linear_map_of_its_weight(bias):
    made = layer(bias)
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    expected = nn.functional.linear(x, made.weight, made.bias)
    torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made(input=x), expected, rtol=1e-12, atol=1e-12)


def test_its_weight_is_no_parameter_and_cannot_be_written_to():
    made = layer()
    assert [name for name, _ in made.named_parameters()] == ["bias", "base.down", "base.up"]
    with pytest.raises(KeyError, match="weight"):
        made.weight = nn.Parameter(torch.zeros(20, 12))


def test_it_is_still_an_instance_of_its_class():
    assert isinstance(layer(), nn.Linear)
    assert type(layer()).__name__ == "StructuredLinear"


def test_it_takes_one_tensor():
    with pytest.raises(CaptureError, match="takes one tensor, not 2"):
        layer()(torch.zeros(1, 12), torch.zeros(1))


def test_it_says_the_shape_of_its_weight_without_making_it():
    made = layer()
    assert made.weight_shape == tuple(made.weight.shape) == (20, 12)
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(20, 12)
    structure(conv1d, LowRank(12, 20, 3), conv1d.bias)
    assert conv1d.weight_shape == tuple(conv1d.weight.shape) == (12, 20)


def test_a_class_that_does_not_say_how_it_is_drawn_says_so():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(20, 12)
    structure(conv1d, LowRank(12, 20, 3), conv1d.bias)
    with pytest.raises(CaptureError, match="a Conv1D whose W is factorized cannot draw it anew"):
        conv1d.reset_parameters()
    conv1d.base.lacks_values = True
    conv1d.reset_parameters()  # noble_fx.reset_parameters draws it
    assert conv1d.base.lacks_values


def test_gradients_reach_both_factors():
    made = layer()
    made(torch.randn(4, 12, dtype=torch.float64)).sum().backward()
    assert made.base.down.grad is not None
    assert made.base.up.grad is not None

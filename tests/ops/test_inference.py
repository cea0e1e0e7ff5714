"""The operators for inference say what the eager branch says, in float64."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.ops.inference import DECOMPOSITIONS, joined_down, joined_up
from noble_fx.ops.inference import linear as rows_linear
from noble_fx.schema import FACTORIZED, JOINED_DOWN, JOINED_FACTORIZED, JOINED_UP, LINEAR, LINEAR_GROUP
from tests.models import loud


def layer(act, bias=True):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 10, bias=bias))
    model = noble_fx.transform(plain, rank=4, act=act, preset="reference", capture="modules")
    return loud(model).double()[0].requires_grad_(False)


@pytest.mark.parametrize("act", ["cosnet", "swiglu_net", "gelu_scale", "identity"])
@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12), (2, 0, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_and_joined_are_the_layer(act, shape, bias):
    one = layer(act, bias)
    branch, x = one.noble, torch.randn(shape, dtype=torch.float64)
    expected = (x @ one.weight.t() + (0 if one.bias is None else one.bias)) + branch(x)
    tensors = branch.act_tensors()
    found = rows_linear(x, one.weight, one.bias, branch.down, branch.down_bias, branch.up, tensors, branch.key)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    zeros = torch.zeros(10, dtype=torch.float64)
    down_bias = torch.zeros(4, dtype=torch.float64) if branch.down_bias is None else branch.down_bias
    joined = torch.cat([one.weight, branch.down])
    joined_bias = torch.cat([zeros if one.bias is None else one.bias, down_bias])
    found = JOINED_DOWN(x, joined, joined_bias, branch.up, tensors, branch.key)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    joined = torch.cat([one.weight, branch.up], dim=1)
    found = JOINED_UP(x, joined, one.bias, branch.down, branch.down_bias, tensors, branch.key)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_half_precision_evaluates_sigma_in_float32():
    one = layer("cosnet").half()
    branch, x = one.noble, 20 * torch.randn(5, 12).half()
    expected = nn.functional.linear(x, one.weight, one.bias) + branch(x)
    joined = torch.cat([one.weight, branch.down])
    bias = torch.cat([one.bias, branch.down_bias])
    found = joined_down(x, joined, bias, branch.up, branch.act_tensors(), branch.key)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
    joined = torch.cat([one.weight, branch.up], dim=1)
    found = joined_up(x, joined, one.bias, branch.down, branch.down_bias, branch.act_tensors(), branch.key)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)


def test_the_operators_are_well_formed():
    branch = layer("cosnet").noble
    x, weight = torch.randn(3, 12, dtype=torch.float64), torch.randn(14, 12, dtype=torch.float64)
    act, tests = (branch.act_tensors(), branch.key), ("test_schema", "test_faketensor")
    torch.library.opcheck(JOINED_DOWN, (x, weight, None, branch.up, *act), test_utils=tests)
    weight = torch.randn(10, 16, dtype=torch.float64)
    torch.library.opcheck(JOINED_UP, (x, weight, None, branch.down, None, *act), test_utils=tests)
    both, last = torch.randn(5 + 4, 12, dtype=torch.float64), torch.randn(14, 5 + 4, dtype=torch.float64)
    torch.library.opcheck(JOINED_FACTORIZED, (x, both, None, last, None, 5, *act), test_utils=tests)
    assert set(DECOMPOSITIONS) == {LINEAR, LINEAR_GROUP, FACTORIZED, JOINED_FACTORIZED, JOINED_DOWN, JOINED_UP}

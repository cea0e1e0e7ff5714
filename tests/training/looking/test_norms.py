"""Norms in float32 or better, of sharded tensors as a whole."""

import math

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from noble_fx.training.looking.norms import floats, norm
from tests.one_rank import first_of_two, one_rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_against_float64(dtype):
    parts = [torch.randn(300, 20).to(dtype), torch.randn(7).to(dtype)]
    expected = math.sqrt(sum(part.double().square().sum().item() for part in parts))
    found = norm(parts)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_what_float16_could_not_hold():
    assert norm([torch.full((100,), 6e4, dtype=torch.float16)]).item() == pytest.approx(6e5, rel=1e-3)


def test_nested_and_empty():
    parts = [torch.ones(2, 3), torch.ones(4, 3)]
    assert norm([torch.nested.nested_tensor(parts)]).item() == pytest.approx(math.sqrt(18))
    assert norm([torch.ones(0)]).item() == 0


@pytest.mark.parametrize("placement", [Shard(0), Replicate()])
def test_a_sharded_tensor_counts_as_a_whole(placement):
    tensor = torch.arange(8.0).reshape(4, 2)
    with one_rank() as mesh:
        found = norm([distribute_tensor(tensor, mesh, [placement])])
        assert type(found) is torch.Tensor
        assert found.item() == pytest.approx(tensor.norm().item())


def test_other_ranks_are_asked_for_theirs():
    from torch.distributed.tensor import DTensor

    with first_of_two() as mesh:
        half = DTensor.from_local(torch.ones(4), mesh, [Shard(0)])
        assert half.numel() == 8
        assert type(norm([half])) is torch.Tensor


def test_scalars_of_any_dtype_in_their_order():
    assert floats([torch.tensor(1.0), torch.tensor(2), torch.tensor(3.0).double(), torch.tensor(4.0)]) == [1, 2, 3, 4]
    assert floats([]) == []

"""Values of one rank are laid out over all as a tensor is."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from noble_fx.distributed import is_distributed, laid_out_like, replicate_beside
from tests.one_rank import one_rank


def test_a_plain_tensor_needs_nothing():
    values, branch = torch.ones(4, 2), nn.Linear(2, 2)
    assert not is_distributed(values)
    assert laid_out_like(torch.zeros(4, 2), values) is values
    replicate_beside(branch, values)
    assert type(branch.weight) is nn.Parameter


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
def test_values_follow_the_layout_device_and_dtype(placement):
    with one_rank() as mesh:
        tensor = distribute_tensor(torch.zeros(4, 2, dtype=torch.float64), mesh, [placement])
        placed = laid_out_like(tensor, torch.ones(4, 2))
        assert is_distributed(placed)
        assert placed.placements == (placement,)
        assert torch.equal(placed.full_tensor(), torch.ones(4, 2, dtype=torch.float64))


def test_a_branch_is_whole_on_every_rank():
    branch = nn.BatchNorm1d(2)
    branch.weight.requires_grad_(False)
    with one_rank() as mesh:
        replicate_beside(branch, distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)]))
        assert all(t.placements == (Replicate(),) for t in branch.state_dict().values())
        assert [p.requires_grad for p in branch.parameters()] == [False, True]

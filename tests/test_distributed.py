"""Values of one rank are laid out over all as a tensor is."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from noble_fx.distributed import is_distributed, laid_out_like, lay_beside, reduced, whole
from tests.one_rank import one_rank


def test_a_plain_tensor_needs_nothing():
    values, branch = torch.ones(4, 2), nn.Linear(2, 2)
    assert not is_distributed(values)
    assert laid_out_like(torch.zeros(4, 2), values) is values
    assert whole(values) is values
    lay_beside(branch, values, "[N, K]")
    assert type(branch.weight) is nn.Parameter


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
def test_values_follow_the_layout_device_and_dtype(placement):
    with one_rank() as mesh:
        tensor = distribute_tensor(torch.zeros(4, 2, dtype=torch.float64), mesh, [placement])
        placed = laid_out_like(tensor, torch.ones(4, 2))
        assert is_distributed(placed)
        assert placed.placements == (placement,)
        assert torch.equal(whole(placed), placed.full_tensor())
        assert torch.equal(placed.full_tensor(), torch.ones(4, 2, dtype=torch.float64))


class Two(nn.Module):
    axes = {"up": ("N", "r")}

    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.Parameter(torch.arange(8.0).reshape(4, 2)), nn.BatchNorm1d(2)
        self.norm.weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("placement", "layout", "up"),
    [
        (Shard(0), "[N, K]", Shard(0)),
        (Shard(1), "[K, N]", Shard(0)),
        (Shard(1), "[N, K]", Replicate()),
        (Shard(0), "", Replicate()),
        (Replicate(), "[N, K]", Replicate()),
    ],
)
def test_a_branch_is_cut_where_its_weight_is(placement, layout, up):
    branch = Two()
    with one_rank() as mesh:
        lay_beside(branch, distribute_tensor(torch.zeros(4, 4), mesh, [placement]), layout)
        state = branch.state_dict()
        assert state.pop("up").placements == (up,)
        assert all(tensor.placements == (Replicate(),) for tensor in state.values())
        assert [p.requires_grad for p in branch.parameters()] == [True, False, True]
        assert torch.equal(branch.up.full_tensor(), Two().up)


def test_parts_are_summed_and_everything_else_is_left():
    plain = torch.ones(2)
    assert reduced(plain) is plain
    with one_rank() as mesh:
        whole = DTensor.from_local(plain, mesh, [Replicate()])
        assert reduced(whole) is whole
        assert reduced(DTensor.from_local(plain, mesh, [Partial()])).placements == (Replicate(),)

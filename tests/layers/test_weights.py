"""Which tensors a branch is right beside."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.testing._internal.two_tensor import TwoTensor

import noble_fx
from noble_fx import ConfigError
from noble_fx.layers.weights import why_unsuitable


class Int8Params(nn.Parameter):
    """bitsandbytes' way: a subclass of nn.Parameter, still floating before it is moved."""


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_plain_tensors_of_a_trained_dtype_are_suitable(dtype):
    assert why_unsuitable(torch.zeros(4, 4, dtype=dtype)) is None
    assert why_unsuitable(nn.Parameter(torch.zeros(4, 4, dtype=dtype, device="meta"))) is None
    assert why_unsuitable(nn.LazyLinear(4).weight) is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_any_other_dtype_is_named(dtype):
    assert str(dtype) in str(why_unsuitable(torch.zeros(4, 4).to(dtype)))


def test_a_class_that_is_not_known_is_named():
    two = TwoTensor(torch.zeros(16, 16), torch.zeros(16, 16))
    for weight in (two, nn.Parameter(two), Int8Params(torch.zeros(16, 16))):
        model = nn.Sequential(nn.Linear(16, 16))
        model[0]._parameters["weight"] = weight
        (site,) = noble_fx.sites(model, rank=4)
        assert not site.selected
        assert (
            site.reason
            == f"a {type(weight).__qualname__} of {type(weight).__module__.split('.')[0]}, and no plain tensor"
        )
        with pytest.raises(ConfigError, match=f"weight of '0' is a {type(weight).__qualname__} .*before quantizing it"):
            noble_fx.transform(model, rank=4)


def test_a_shard_counts_as_what_it_is_made_of(mesh):
    assert why_unsuitable(nn.Parameter(distribute_tensor(torch.zeros(4, 4), mesh, [Replicate()]))) is None
    shard = distribute_tensor(torch.zeros(4, 4, dtype=torch.int8), mesh, [Replicate()])
    assert "torch.int8" in str(why_unsuitable(shard))


def test_a_projection_and_an_expert_are_looked_at_too():
    model = nn.Sequential(nn.MultiheadAttention(16, 2), nn.Linear(16, 16))
    model[0].in_proj_weight = nn.Parameter(torch.zeros(48, 16, dtype=torch.int8), requires_grad=False)
    reasons = {site.fqn: site.reason for site in noble_fx.sites(model, rank=4)}
    assert reasons["0.in_proj_weight"] == "of dtype torch.int8, not floating point"

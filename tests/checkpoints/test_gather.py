"""Sharded models: whole tensors on rank 0, and all ranks of one mind. One rank here; two with `make test-long`."""

import os
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

import noble_fx
from noble_fx import CheckpointError
from noble_fx.checkpoints import gather
from noble_fx.checkpoints.gather import agreed, gathered, is_sharded
from tests.models import loud, tiny, tokens


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def model():
    made = tiny(width=20)
    made.head.weight = made.embed.weight
    return loud(noble_fx.transform(made, rank=2))


def sharded(mesh):
    made = model()
    for block in made.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(made, mesh=mesh)


def test_what_is_sharded(mesh):
    assert is_sharded(sharded(mesh))
    assert not is_sharded(model())
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh))
    assert is_sharded(nn.Sequential(nn.Linear(4, 4), layer))


def test_the_state_is_whole_and_plain(mesh):
    expected = model().state_dict()
    state = gathered(sharded(mesh))
    assert list(state) == list(expected)
    assert all(type(state[name]) is torch.Tensor and torch.equal(state[name], expected[name]) for name in expected)


def test_a_sharded_model_is_saved_as_the_plain_one_is(mesh, tmp_path):
    noble_fx.save(model(), tmp_path / "plain")
    noble_fx.save(torch.compile(sharded(mesh), backend="eager"), tmp_path / "sharded")
    for name in ("model.safetensors", "noble_config.json"):
        assert (tmp_path / "sharded" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    with pytest.raises(CheckpointError, match="exists; remove it"):
        noble_fx.save(sharded(mesh), tmp_path / "sharded")


def test_a_sharded_model_is_not_loaded_into(mesh, tmp_path):
    noble_fx.save(model(), tmp_path / "saved")
    plain = tiny()
    with pytest.raises(CheckpointError, match=r"wrapped or sharded already \(fully_shard\); load into the plain model"):
        noble_fx.load(fully_shard(plain, mesh=mesh), tmp_path / "saved")
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh))
    with pytest.raises(CheckpointError, match=r"0.weight is a DTensor, .*load into the plain model, then shard"):
        noble_fx.load(nn.Sequential(layer), tmp_path / "saved")


def test_what_another_rank_says_is_raised_here(monkeypatch):
    monkeypatch.setattr(gather, "_told", lambda value: [value, "no space left on rank 1"])
    with pytest.raises(CheckpointError, match="no space left on rank 1"), agreed(True):
        pass


def test_ones_own_error_is_told_and_raised(monkeypatch):
    told = []
    monkeypatch.setattr(gather, "_told", lambda value: told.append(value) or [value])
    with pytest.raises(KeyError, match="mine"), agreed(True):
        raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"), agreed(False):
        raise KeyError("mine")
    assert told == ["'mine'"]


def test_ranks_of_different_models_are_refused(mesh, monkeypatch):
    made = sharded(mesh)
    monkeypatch.setattr(gather, "_told", lambda value: [value, ["another"]])
    with pytest.raises(CheckpointError, match="the ranks hold different models"):
        gathered(made)


# --- two processes ---------------------------------------------------------------------------------------------------


def on_two_ranks(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    made = sharded(mesh)
    noble_fx.save(made, f"{folder}/saved")
    assert torch.equal(noble_fx.load(tiny_of_width_20(), f"{folder}/saved")(tokens()), model()(tokens()))
    with pytest.raises(CheckpointError, match="exists; remove it"):  # rank 0 finds it, and both say so
        noble_fx.save(made, f"{folder}/saved")
    other = fully_shard(loud(noble_fx.transform(tiny(layers=1 + rank), rank=2)), mesh=mesh)
    with pytest.raises(CheckpointError, match="the ranks hold different models"):
        noble_fx.save(other, f"{folder}/other")
    path = None if rank == 1 else f"{folder}/other"
    with pytest.raises(CheckpointError, match="None is no path"):  # on rank 1 alone
        noble_fx.save(made, path)
    assert sorted(os.listdir(folder)) == ["saved", "store"]
    dist.destroy_process_group()


def tiny_of_width_20():
    made = tiny(width=20)
    made.head.weight = made.embed.weight
    return made


@pytest.mark.long
def test_two_ranks(tmp_path):
    torch.multiprocessing.spawn(on_two_ranks, (str(tmp_path),), nprocs=2)  # raises what a rank raised
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["model.safetensors", "noble_config.json"]

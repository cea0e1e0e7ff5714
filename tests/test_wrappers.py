"""A wrapper is known by its class: what it holds, and the names that it adds."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from noble_fx.wrappers import own_name, unwrapped, wrapper


class Own(nn.Module):
    """A user's model whose parts are called as wrappers call theirs."""

    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(4, 4))
        self._orig_mod = nn.Linear(4, 4)

    def forward(self, x):
        return self._orig_mod(self.module(x))


def imported(package, name, child):
    """A wrapper class as a package that is not installed here has it."""
    cls = type(name, (nn.Module,), {"__module__": f"{package}.somewhere"})

    def make(model):
        made = cls()
        made.add_module(child, model)
        return made

    return make


WRAPPED = {
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "activation checkpointing": checkpoint_wrapper,
    "DistributedDataParallel": imported("torch.nn.parallel", "DistributedDataParallel", "module"),
    "FullyShardedDataParallel": imported("torch.distributed", "FullyShardedDataParallel", "_fsdp_wrapped_module"),
    "DeepSpeedEngine": imported("deepspeed", "DeepSpeedEngine", "module"),
    "ModelEmaV3": imported("timm", "ModelEmaV3", "module"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_is_named_and_taken_off(name):
    model = Own()
    wrapped = WRAPPED[name](model)
    assert wrapper(wrapped) == name
    inner = unwrapped(wrapped)
    assert type(inner) is Own
    assert (inner is model) == (name != "AveragedModel")  # which averages a copy
    for kind in ("named_parameters", "named_modules"):
        names = [own_name(fqn, wrapped) for fqn, _ in getattr(wrapped, kind)()]
        assert list(dict.fromkeys(n for n in names if n)) != []
        assert set(names) - {""} - {"n_averaged"} == {fqn for fqn, _ in getattr(model, kind)()} - {""}


def test_nested_wrappers():
    model = Own()
    wrapped = nn.DataParallel(torch.compile(AveragedModel(model), backend="eager"))
    assert wrapper(wrapped) == "DataParallel"
    assert type(unwrapped(wrapped)) is Own
    assert own_name("module._orig_mod.module.module.0.weight", wrapped) == "module.0.weight"
    assert own_name("module._orig_mod.n_averaged", wrapped) == "n_averaged"


def test_wrappers_inside_a_model():
    model = Own()
    model.module[0] = checkpoint_wrapper(torch.compile(model.module[0], backend="eager"))
    assert wrapper(model) == ""
    assert unwrapped(model) is model
    names = {own_name(fqn, model) for fqn, _ in model.named_parameters()}
    assert names == {fqn for fqn, _ in Own().named_parameters()}


def test_a_users_own_names_stay():
    model = Own()
    for fqn, _ in [*model.named_parameters(), *model.named_modules()]:
        assert own_name(fqn, model) == fqn
    assert own_name("module.0.weight") == "module.0.weight"


def test_a_name_without_its_model():
    assert own_name("_orig_mod.layers.0._checkpoint_wrapped_module.q_proj.weight") == "layers.0.q_proj.weight"
    assert own_name("layers.0._fsdp_wrapped_module._orig_mod.q.weight") == "layers.0.q.weight"
    assert own_name("my_orig_mod.weight") == "my_orig_mod.weight"


@pytest.mark.parametrize(("base", "name"), [("FSDPModule", "fully_shard"), ("ReplicateModule", "replicate")])
def test_a_module_made_parallel_in_place_is_itself(base, name):
    mixin = type(base, (), {"__module__": "torch.distributed.fsdp"})
    model = Own()
    model.__class__ = type("FSDPOwn", (mixin, Own), {})
    assert wrapper(model) == name
    assert unwrapped(model) is model
    assert own_name("module.0.weight", model) == "module.0.weight"


@pytest.mark.parametrize("base", [nn.DataParallel, AveragedModel])
def test_a_subclass_of_a_wrapper_is_one(base):
    class Mine(base):
        pass

    assert wrapper(Mine(Own())) == base.__name__

"""A model is put back as it was, down to the identity of its tables."""

import pytest
import torch
from torch import nn

from noble_fx.attach.restore import restored_on_error, unchanged


class Other(nn.Linear):
    pass


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].steps = [1, 2]
    return model


def change(model: nn.Module) -> None:
    model[0].__class__ = Other
    model[0].noble = nn.Linear(2, 2)
    model[0].note = "new"
    model[0].steps.append(3)
    model[1].momentum = 0.5
    model[1].running_mean = torch.ones(3)
    del model[1].weight
    model.append(nn.ReLU())
    model[0].register_forward_hook(lambda *_: None)


def assert_as_it_was(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    assert type(model[0]) is nn.Linear
    assert len(model) == 2
    assert list(model[0]._modules) == []
    assert not hasattr(model[0], "note")
    assert model[0].steps == [1, 2]
    assert model[1].momentum == 0.1
    assert model[0]._forward_hooks == {}
    assert {name: id(t) for name, t in model.state_dict(keep_vars=True).items()} == {
        name: id(t) for name, t in tensors.items()
    }


def stopped(model: nn.Module, *steps, error: type[BaseException] = RuntimeError) -> None:
    """Do the steps, fail, and expect to be back."""

    def fail():
        with restored_on_error(model) as before:
            before.keep(model.parameters())
            for step in steps:
                step()
            raise error("half way")

    with pytest.raises(error, match="half way"):
        fail()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whatever_is_raised_undoes_every_kind_of_change(model, error):
    tensors = model.state_dict(keep_vars=True)
    stopped(model, lambda: change(model), error=error)
    assert_as_it_was(model, tensors)


def test_values_that_were_kept_come_back_and_nothing_does_where_all_went_well(model):
    value = model[0].weight.clone()
    stopped(model, model[0].weight.data.zero_)
    assert torch.equal(model[0].weight, value)
    with restored_on_error(model) as before:
        before.keep(model.parameters())
        model[0].weight.data.zero_()
    assert torch.equal(model[0].weight, torch.zeros(3, 3))


def test_tables_stay_the_same_objects_so_that_a_handle_still_removes_its_hook(model):
    handle = model[0].register_forward_hook(lambda *_: None)
    parameters = model[0]._parameters
    stopped(model, lambda: delattr(model[0], "weight"), model[0]._forward_hooks.clear)
    assert model[0]._parameters is parameters
    assert list(parameters) == ["weight", "bias"]
    assert len(model[0]._forward_hooks) == 1
    handle.remove()
    assert not model[0]._forward_hooks


def test_what_only_looks_leaves_nothing_behind(model):
    tensors = model.state_dict(keep_vars=True)
    with unchanged(model):
        change(model)
    assert_as_it_was(model, tensors)


def test_tensors_without_values_are_no_trouble():
    model = nn.Linear(2, 2, device="meta")
    tensors = model.state_dict(keep_vars=True)
    stopped(model)
    assert model.state_dict(keep_vars=True).keys() == tensors.keys()
    assert all(own is tensors[name] for name, own in model.state_dict(keep_vars=True).items())


def test_what_learns_is_put_back():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].requires_grad_(False)

    def stopped():
        with restored_on_error(model):
            model[0].requires_grad_(False)
            model[1].requires_grad_(True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]

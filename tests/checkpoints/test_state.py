"""A model's state as a file can hold it: own names, plain tensors apart, extra state as JSON."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune

import noble_fx
from noble_fx import CheckpointError
from noble_fx.checkpoints.state import state_to_save
from tests.models import loud, tiny


def branched(*layers):
    model = nn.Sequential(nn.Linear(8, 8), *layers)
    return loud(noble_fx.transform(model, rank=2, select=["0"]))


def test_what_is_plain_is_as_it_is():
    model = loud(noble_fx.transform(tiny(), rank=2))
    state = state_to_save(model)
    assert state.extra == state.tied == {}
    assert list(state.tensors) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(state.tensors[name], tensor)
        assert state.tensors[name].data_ptr() == tensor.data_ptr()  # no copy of what needs none


def test_names_are_the_users_own_where_parts_are_wrapped():
    model = branched(nn.Linear(8, 8), nn.Linear(8, 8))
    names = list(model.state_dict())
    model[1] = torch.compile(model[1], backend="eager")
    model[2] = checkpoint_wrapper(model[2])
    assert list(model.state_dict()) != names
    assert list(state_to_save(model).tensors) == names


def test_views_of_one_buffer_are_stored_apart():
    model = branched(nn.Linear(8, 8), nn.Linear(8, 8))
    flat = torch.randn(3, 64)
    model[1].weight.data, model[2].weight.data = flat[0].view(8, 8), flat[1].view(8, 8).t()
    model.register_buffer("all", flat[:2])
    tensors = state_to_save(model).tensors
    assert torch.equal(tensors["2.weight"], flat[1].view(8, 8).t())
    assert torch.equal(tensors["all"], flat[:2])
    assert all(t.is_contiguous() and t.nbytes == t.untyped_storage().nbytes() for t in tensors.values())
    assert len({t.data_ptr() for t in tensors.values()}) == len(tensors)


def test_a_tensor_of_two_names_is_stored_once():
    model = branched(nn.Linear(8, 8))
    model.register_module("again", model[1])
    state = state_to_save(model)
    assert state.tied == {"again.weight": "1.weight", "again.bias": "1.bias"}
    assert "again.weight" not in state.tensors


def test_names_that_a_hook_made_different_are_both_stored():
    model = branched(nn.Linear(8, 8))
    model.register_module("again", model[1])

    def doubled(module, state, prefix, metadata):
        state["again.weight"] = 2 * state["again.weight"]

    model.register_state_dict_post_hook(doubled)
    state = state_to_save(model)
    assert state.tied == {"again.bias": "1.bias"}
    assert torch.equal(state.tensors["again.weight"], 2 * model[1].weight)


@pytest.mark.parametrize(
    "buffer", [torch.randn(3, dtype=torch.complex64).conj(), torch.zeros(1).expand(4), torch.tensor(3), torch.zeros(0)]
)
def test_unusual_tensors(buffer):
    model = branched()
    model.register_buffer("b", buffer)
    stored = state_to_save(model).tensors["b"]
    assert torch.equal(stored, buffer)
    assert stored.is_contiguous()
    assert not stored.is_conj()


class Labelled(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("buffer", "reason"),
    [
        (torch.zeros(2).as_subclass(Labelled), "a Labelled, a tensor class of its own"),
        (torch.eye(2).to_sparse(), r"sparse \(torch.sparse_coo\)"),
        (torch.zeros(2, dtype=torch.complex128), "of dtype torch.complex128"),
    ],
)
def test_tensors_that_no_file_can_hold(buffer, reason):
    model = branched()
    model.register_buffer("b", buffer)
    with pytest.raises(CheckpointError, match=f"^b is {reason}, which a safetensors file cannot hold"):
        state_to_save(model)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of its older quantized tensors
def test_a_quantized_tensor():
    model = branched()
    model.register_buffer("b", torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8))
    with pytest.raises(CheckpointError, match=r"^b is quantized, which a safetensors file cannot hold"):
        state_to_save(model)


class Extra(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def get_extra_state(self):
        return self.value

    def set_extra_state(self, state):
        self.value = state


@pytest.mark.parametrize("value", [None, 3, "text", {"k": [1, 2.5, None, True]}])
def test_extra_state_is_json(value):
    state = state_to_save(branched(Extra(value)))
    assert state.extra == {"1._extra_state": value}
    assert "1._extra_state" not in state.tensors


def test_extra_state_that_is_a_tensor_lies_with_the_weights():
    state = state_to_save(branched(Extra(torch.arange(3))))
    assert torch.equal(state.tensors["1._extra_state"], torch.arange(3))
    assert state.extra == {}


def circle():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {1, 2}, b"x", float("nan"), print, {"t": torch.zeros(1)}, circle()])
def test_extra_state_that_would_not_come_back(value):
    with pytest.raises(CheckpointError, match=r"^the extra state 1\._extra_state is a \w+ that .*use torch.save$"):
        state_to_save(branched(Extra(value)))


def weight_norm_by_hooks(layer):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)


CHANGES = {
    "layer": lambda model: parametrizations.weight_norm(model[0]),
    "up": lambda model: parametrizations.orthogonal(model[0].noble, "up"),
    "pruned": lambda model: prune.random_unstructured(model[0].noble, "down", 0.5),
    "hooks": lambda model: weight_norm_by_hooks(model[0]),
    "resized": lambda model: setattr(model[0].noble, "up", nn.Parameter(torch.zeros(9, 2))),
    "emptied": lambda model: setattr(model[0].noble.down, "data", torch.zeros(0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_branch_that_no_load_could_fill_is_refused(change):
    model = branched()
    CHANGES[change](model)
    with pytest.raises(CheckpointError, match=r"^0\..* so no plain model could be filled from the file: .*Undo that"):
        state_to_save(model)


def test_the_remedies_work():
    model = branched()
    parametrizations.weight_norm(model[0])
    prune.random_unstructured(model[0].noble, "down", 0.5)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    prune.remove(model[0].noble, "down")
    assert sorted(state_to_save(model).tensors) == sorted(branched().state_dict())


def test_a_parametrized_layer_without_a_branch_is_its_own_affair():
    model = branched(parametrizations.weight_norm(nn.Linear(8, 8)))
    assert "1.parametrizations.weight.original0" in state_to_save(model).tensors

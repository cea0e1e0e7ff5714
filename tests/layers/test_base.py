"""Classes of layers with a branch: made of a mixin and the layer's own class, once, and picklable."""

import pickle

import torch
from torch import nn

from noble_fx import NobleBranch, NobleConfig, NobleLinear
from noble_fx.layers.base import Augmented, class_with_branch, plain_class


class Own(nn.Linear):
    def forward(self, tensor):
        return super().forward(tensor)


class Mine(NobleLinear):
    """A user's subclass of a layer with a branch."""


def layer_of(kind: type) -> nn.Module:
    layer = kind(8, 6)
    layer.noble = NobleBranch(8, 6, 2, NobleConfig(rank=2))
    layer.noble.prepare()
    return layer


def test_a_class_is_made_once_and_has_its_own_name():
    assert class_with_branch(Augmented, nn.Linear) is NobleLinear
    made = class_with_branch(Augmented, Own)
    assert made is class_with_branch(Augmented, Own)
    assert (made.__name__, made.__bases__, made._input_name) == ("NobleOwn", (Augmented, Own), "tensor")
    assert plain_class(made(8, 6)) is Own
    assert plain_class(Own(8, 6)) is Own


def test_classes_that_were_made_and_users_subclasses_are_pickled_each_as_itself():
    for kind in (NobleLinear, class_with_branch(Augmented, Own), Mine):
        layer, x = layer_of(kind), torch.randn(3, 8)
        again = pickle.loads(pickle.dumps(layer))
        assert type(again) is kind
        assert torch.equal(again(x), layer(x))


def test_a_branch_that_is_off_leaves_the_class_own_forward():
    layer, x = layer_of(NobleLinear), torch.randn(3, 8)
    layer.noble.enabled = False
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(input=x), layer(x))

"""Classes made of a mixin and a layer's own class: one of each, and pickled by what they are made of."""

import copy
import pickle

import torch
from torch import nn

from noble_fx.layers.base import Augmented, class_with_branch
from noble_fx.layers.linear import NobleLinear
from noble_fx.layers.made_class import made_class
from noble_fx.layers.structured import Structured


class Named(nn.Linear):
    pass


def test_there_is_one_class_of_each_pair():
    kind = made_class(Structured, Named)
    assert kind is made_class(Structured, Named)
    assert kind.__name__ == "StructuredNamed"
    assert class_with_branch(Augmented, nn.Linear) is NobleLinear


def test_a_class_of_a_class_is_found_again_by_pickle():
    kind = class_with_branch(Augmented, made_class(Structured, Named))
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    layer.marker = nn.Parameter(torch.ones(2))
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(again) is kind
        assert torch.equal(again.marker, layer.marker)


def test_it_takes_its_input_by_the_name_that_the_class_has():
    class Another(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden)

    assert made_class(Structured, Another)._input_name == "hidden"

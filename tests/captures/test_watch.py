"""What forward reads and sets of a copy is noted, and the copy is what it was afterwards."""

import copy

import pytest
import torch
from torch import nn

from noble_fx.captures.base import Declined
from noble_fx.captures.meta_copy import copy_over, to_meta
from noble_fx.captures.watch import Watch, shown


class Config:
    def __init__(self, **values):
        vars(self).update(values)


class Part(nn.Module):
    factor = 2.0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.unread = 1

    def method(self, x):
        return self.linear(x) * self.factor

    @property
    def doubled(self):
        return self.scale * 2 if hasattr(self, "scale") else 2

    def forward(self, x):
        return self.method(x) * self.doubled


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Part()
        self.config = Config(flag=True, unread=3, inner=Config(n=2))
        self.sizes, self.offset = [1, 2], None
        self.register_buffer("shift", None)
        self.rest = nn.Sequential(nn.ReLU())

    def forward(self, x):
        x = self.part(x) * self.config.inner.n if self.config.flag else x
        x = x if self.shift is None else x + self.shift
        return self.rest(x) * len(self.sizes) * (2 if self.training else 1)


def watched(model, run=lambda model: model(torch.ones(2, 4, device="meta"))):
    copied, own = copy_over(model, to_meta)
    watch = Watch(copied, own)
    with watch.watching():
        assert type(copied).__name__ == type(model).__name__
        assert isinstance(copied, type(model))
        with watch.noting():
            run(copied)
        watch.check()
    return copied, watch


def test_what_is_read_is_noted_and_nothing_else():
    copied, watch = watched(Whole())
    names = {shown(path).strip("'") for path in watch.reads}
    assert names >= {"part", "part.linear", "part.factor", "part.method", "sizes", "shift", "rest", "rest._modules"}
    assert names >= {"config.flag", "config.inner.n"}
    assert not {"part.unread", "config.unread", "config", "offset", "part.doubled", "part.linear.weight"} & names
    assert watch.modes == {"": True}
    assert type(copied) is Whole
    assert type(copied.config) is Config


def sets(model):
    model.part.last = 1


def sets_inside(model):
    model.config.flag = False
    assert not model.config.flag


def appends(model):
    model.sizes.append(3)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (sets, r"forward sets 'part\.last'"),
        (sets_inside, r"forward sets 'config\.flag'"),
        (appends, "forward changes 'sizes'"),
        (lambda model: model.stream, "forward reads 'stream', and a graph cannot follow what a Generator holds"),
    ],
)
def test_what_a_graph_cannot_do_declines(run, reason):
    model = Whole()
    model.stream = None
    copied, own = copy_over(model, to_meta)
    vars(copied)["stream"] = torch.Generator()
    watch = Watch(copied, own)
    with watch.watching():
        with watch.noting():
            run(copied)
        with pytest.raises(Declined, match=reason):
            watch.check()
    assert type(copied) is Whole


def test_setting_what_is_there_already_is_no_change():
    def again(model):
        model.part.unread = 1

    copied, _ = watched(Whole(), again)  # it checks
    assert copied.part.unread == 1


def test_an_object_that_others_hold_keeps_its_class():
    class Shared:
        def __init__(self):
            self.n = 1

        def __deepcopy__(self, memo):
            return self

    model = Whole()
    model.shared = Shared()
    kinds = []
    _, watch = watched(model, lambda copied: kinds.append(type(copied.shared)))
    assert kinds == [Shared]
    assert ("", "shared") in watch.reads


def test_the_model_itself_is_not_touched():
    model = Whole()
    before = copy.copy(vars(model)), type(model.config)
    watched(model)
    assert (vars(model), type(model.config)) == before


def test_a_class_that_is_made_for_a_moment_is_not_announced():
    announced = []

    class Registers(Whole):
        def __init_subclass__(cls, **settings):
            announced.append(cls)

    watched(Registers())
    assert not announced


def test_an_object_that_forward_makes_is_its_own_business():
    def makes(model):
        other = copy.copy(model.config)
        other.flag = False
        assert not other.flag
        return type(model)()

    watched(Whole(), makes)

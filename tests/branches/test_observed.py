"""A quiet copy computes what its module computes, calls no hook, and notes reads and writes while it is watched."""

import copy

import torch
from torch import nn

from noble_fx.branches.observed import Notes, quiet, watched


class Gain(nn.Module):
    subclasses: list[type] = []

    def __init_subclass__(cls):
        Gain.subclasses.append(cls)

    def __init__(self):
        super().__init__()
        self.gain, self.unread = 2.0, 3.0

    @property
    def twice(self):
        return 2 * self.gain

    def forward(self, h):
        self.calls = getattr(self, "calls", 0) + 1
        return self.twice * h


def test_it_notes_what_is_read_and_written_while_it_is_watched():
    own, notes = quiet(Gain()), {}
    own(torch.ones(2))
    with watched(own, notes):
        assert torch.equal(own(torch.ones(2)), torch.full((2,), 4.0))
    own.gain = 5.0
    assert {"forward", "twice", "gain", "calls"} <= notes[""].reads
    assert "unread" not in notes[""].reads
    assert notes[""].writes == {"calls"}
    assert "_noble_notes" not in vars(own)


def test_notes_are_of_each_module_and_add_up():
    own, notes = quiet(nn.Sequential(nn.LeakyReLU(), nn.Sequential(Gain()))), {"": Notes({"before"})}
    with watched(own, notes):
        own(torch.ones(2))
    assert "before" in notes[""].reads
    assert "negative_slope" in notes["0"].reads
    assert "gain" in notes["1.0"].reads


def test_a_users_list_of_subclasses_gets_none_of_ours():
    before = list(Gain.subclasses)
    own = quiet(Gain())
    assert Gain.subclasses == before
    assert isinstance(own, Gain)
    assert type(own).__name__ == "Gain"


def test_no_hook_runs():
    act, seen = nn.Sequential(nn.Tanh()), []
    act.register_forward_pre_hook(lambda *args: seen.append(args))
    act[0].register_forward_hook(lambda *args: seen.append(args))
    handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(args))
    try:
        quiet(copy.deepcopy(act))(torch.ones(2))
    finally:
        handle.remove()
    assert not seen


def test_a_call_of_the_classs_own_is_kept():
    class Called(nn.Tanh):
        def __call__(self, h):
            return 3 * super().__call__(h)

    h = torch.ones(2)
    assert torch.equal(quiet(Called())(h), 3 * h.tanh())

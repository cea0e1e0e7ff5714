"""What stands in the place of a method, and what is told."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from noble_fx import ConfigError
from noble_fx.training.looking.observer import Call, Observer, in_place, tell, unseen


class Twice(Observer):
    def __call__(self, *args):
        return 2 * self.run(*args)


def test_it_stands_there_inside_and_nothing_is_left():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    expected, before = layer(x), dict(vars(layer))
    with in_place([Twice(layer, "forward")]):
        assert torch.equal(layer(x), 2 * expected)
    assert vars(layer) == before
    assert torch.equal(layer(x), expected)


def test_what_stood_on_the_object_before_comes_back():
    layer = nn.Linear(3, 2)
    layer.forward = own = lambda x: x
    with in_place([Twice(layer, "forward")]):
        assert layer(torch.ones(1)) == 2
    assert vars(layer)["forward"] is own


def test_what_was_put_there_meanwhile_stays():
    layer = nn.Linear(3, 2)
    with in_place([Twice(layer, "forward")]):
        layer.forward = own = lambda x: x
    assert vars(layer)["forward"] is own


def test_an_error_takes_all_away():
    layer = nn.Linear(3, 2)

    class Broken(Twice):
        def put(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), in_place([Twice(layer, "forward"), Broken(layer, "extra_repr")]):
        pass
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps, copy.copy])
def test_a_copy_would_tell_for_good_and_is_refused(copied):
    layer = nn.Linear(3, 2)
    with in_place([Twice(layer, "forward")]), pytest.raises(ConfigError, match="copy it outside"):
        copied(layer.forward if copied is copy.copy else layer)


def call(y, x=None):
    return Call("site", torch.ones(2) if x is None else x, y, list, list)


def test_what_is_told_has_no_gradient_and_no_mode_sees_it():
    told = []

    def see(call):
        told.append((call.y @ call.y, torch.is_grad_enabled()))

    y = torch.ones(3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        tell(see, call(y))
    assert not told[0][1]
    assert not told[0][0].requires_grad
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("odd", [torch.ones(2, device="meta"), (torch.ones(2),), 3])
def test_what_has_no_values_is_not_told(odd):
    tell(lambda call: pytest.fail("told"), call(odd))
    tell(lambda call: pytest.fail("told"), call(torch.ones(2), odd))


def test_a_forward_in_backward_or_in_a_transform_is_not_the_programs_own():
    said = []

    class Asking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            said.append(unseen())
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            said.append(unseen())
            return gradient

    Asking.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert said == [False, True]
    torch.func.vmap(lambda x: said.append(unseen()) or x)(torch.ones(2))
    assert said[-1]

"""What torch is doing is told right, whatever the release."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from noble_fx import torch_state


def test_a_transform_is_seen_while_it_runs():
    seen = []
    torch.func.vmap(lambda x: seen.append(torch_state.in_functorch()) or x)(torch.ones(2))
    assert seen == [True]
    assert not torch_state.in_functorch()


def test_each_transform_of_functions_is_one():
    seen = []

    def note(x):
        seen.append(torch_state.in_transform())
        return x * 2

    x = torch.ones(2)
    torch.func.grad(lambda x: note(x).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        assert torch_state.in_forward_ad()
        note(x)
    torch.jit.trace(note, x, check_trace=False)
    assert seen == [True, True, True]
    assert not torch_state.in_transform()


def test_autocast_may_be_asked_for_and_switched_off_on_a_device_that_has_none():
    assert not torch_state.autocast_is_on("meta")
    with torch_state.without_autocast("meta"):
        pass
    with torch.autocast("cpu"):
        assert torch_state.autocast_is_on("cpu")
        with torch_state.without_autocast("cpu"):
            assert not torch_state.autocast_is_on("cpu")


def test_below_views_nothing_is_recorded():
    weight = torch.ones(2, requires_grad=True)
    with torch_state.below_views():
        assert not (weight * 2).requires_grad
    assert (weight * 2).requires_grad


def test_a_backward_knows_that_it_runs_and_a_forward_that_it_does_not():
    said = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: said.append(torch_state.in_backward()))
    assert not torch_state.in_backward()
    x.sum().backward()
    assert said == [True]
    assert not torch_state.in_backward()


def test_outside_of_modes_none_sees_an_operator():
    class Seen(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    with Seen() as seen:
        torch.ones(2).cos()
        before = seen.count
        with torch_state.outside_modes():
            torch.ones(2).cos()
        assert seen.count == before > 0
        torch.ones(2).cos()
    assert seen.count > before


def test_what_has_no_values_says_so():
    with FakeTensorMode():
        assert torch_state.is_fake(torch.ones(2))
    assert torch_state.is_fake(torch.ones(2, device="meta"))
    assert not torch_state.is_fake(torch.ones(2))


OTHERS = {
    "dtype": lambda: torch.zeros(3, 4).double(),
    "size": lambda: torch.zeros(3, 5),
    "rank": lambda: torch.zeros(3, 4, 1),
    "strides": lambda: torch.zeros(4, 3).t(),
    "class": lambda: torch.nn.Parameter(torch.zeros(3, 4), requires_grad=False),
    "device": lambda: torch.zeros(3, 4, device="meta"),
    "none": lambda: None,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_check_of_a_layout_sees_whatever_is_another(other):
    first, second = torch.zeros(2), torch.zeros(3, 4)
    check = torch_state.layout_check([first, second])
    assert check(first, second)
    assert check(torch.ones(2), torch.ones(3, 4))
    assert not check(first, other())


MODES = {"dispatch mode": TorchDispatchMode, "function mode": BaseTorchFunctionMode}


@pytest.mark.parametrize("mode", [*MODES.values(), lambda: torch.autocast("cpu")], ids=[*MODES, "autocast"])
def test_modes_and_casts_interpose(mode):
    x = torch.ones(2)
    assert torch_state.nothing_interposes(x)
    with mode():
        assert not torch_state.nothing_interposes(x)
    assert torch_state.nothing_interposes(torch.nn.Parameter(x))


def test_a_tensor_of_a_tracer_and_a_compiled_function_are_not_run_as_they_are():
    with FakeTensorMode():
        fake = torch.ones(2)
    assert not torch_state.nothing_interposes(fake)
    said = torch.compile(lambda x: x + torch_state.nothing_interposes(x), backend="eager", fullgraph=True)
    assert torch.equal(said(torch.zeros(2)), torch.zeros(2))

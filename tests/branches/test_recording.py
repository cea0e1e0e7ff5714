"""What a recording says: every operator, by the order of memory, constants by value; nothing of names or attributes."""

import threading

import pytest
import torch
from torch import nn

from noble_fx.branches.recording import elsewhere, record, sampled, with_tensors

RANK = 4


def recording(act: nn.Module, training: bool = True, backward: bool = True) -> str:
    own = sampled(act, torch.float32)
    own.train(training)
    return record(own, RANK, torch.float32, backward)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


class Halved(torch.autograd.Function):
    """tanh with a derivative of its own, half of the true one."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h.tanh()

    @staticmethod
    def backward(ctx, dt):
        (h,) = ctx.saved_tensors
        return dt * (1 - h.tanh() ** 2) / 2


def test_operators_and_numbers_are_written_down():
    text = recording(Function(lambda h: torch.cos(2.5 * h)), backward=False)
    assert "aten.mul.Tensor" in text
    assert "2.5" in text
    assert "aten.cos.default" in text
    assert "aten.sin.default" not in text
    assert "aten.sin.default" in recording(Function(lambda h: torch.cos(2.5 * h)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda h: h - h.abs(), lambda h: h.abs() - h),
        (lambda h: h * torch.tensor([1.0, 2.0, 3.0, 4.0]), lambda h: h * torch.tensor([1.0, 2.0, 3.0, 5.0])),
        (lambda h: h * torch.ones(RANK), lambda h: h * torch.zeros(RANK)),
        (lambda h: h.tanh(), Halved.apply),
        (lambda h: h[:, [0, 1, 2, 3]], lambda h: h[:, [1, 0, 2, 3]]),
        (lambda h: h.roll(1, -1), lambda h: h.roll(2, -1)),
        (lambda h: h.clamp(max=1.0), lambda h: h.clamp(min=1.0)),
    ],
    ids=["order", "constant", "filled", "derivative", "index", "shift", "keyword"],
)
def test_what_differs_in_its_results_differs_in_its_text(one, other):
    assert recording(Function(one)) == recording(Function(one))
    assert recording(Function(one)) != recording(Function(other))


def test_a_parameter_is_told_from_another_of_its_shape():
    class Two(nn.Module):
        def __init__(self, swapped):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(RANK)), nn.Parameter(torch.ones(RANK))
            self.swapped = swapped

        def forward(self, h):
            first, second = (self.b, self.a) if self.swapped else (self.a, self.b)
            return first * h.cos() + second

    assert recording(Two(False)) != recording(Two(True))
    assert recording(Two(True)) == recording(Two(True))


def test_numbers_of_the_parameters_are_not_in_it():
    one, other = nn.Linear(RANK, RANK), nn.Linear(RANK, RANK)
    assert recording(one) == recording(other.to(torch.bfloat16)) == recording(one.to("meta"))
    assert recording(one) == recording(other.requires_grad_(False))


def test_the_activation_itself_is_not_touched():
    act = nn.BatchNorm1d(RANK)
    before = {name: value.clone() for name, value in act.state_dict().items()}
    recording(act)
    assert act.training
    assert all(torch.equal(value, before[name]) for name, value in act.state_dict().items())
    assert all(parameter.grad is None for parameter in act.parameters())


def test_modes_are_recorded_as_they_are():
    flagged = Function(lambda h: h)
    flagged.function = lambda h: h.cos()
    assert recording(flagged, True) == recording(flagged, False)
    assert recording(nn.Dropout(0.5), True) != recording(nn.Dropout(0.5), False)


def test_tensors_are_replaced_and_not_copied():
    act = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    copy = with_tensors(act, lambda tensor: torch.empty_like(tensor, device="meta"))
    assert all(tensor.is_meta for tensor in copy.state_dict().values())
    assert [name for name, _ in copy.named_parameters()] == [name for name, _ in act.named_parameters()]
    assert not any(tensor.is_meta for tensor in act.state_dict().values())


def test_a_tensor_at_two_places_is_one_in_the_copy():
    act = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    act[1].weight = act[0].weight
    copy = sampled(act, torch.float64)
    assert copy[1].weight is copy[0].weight
    assert copy[0].weight.dtype == torch.float64


def test_elsewhere_is_another_thread_and_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu"):
        thread, inference, device, autocast = elsewhere(
            lambda: (
                threading.get_ident(),
                torch.is_inference_mode_enabled(),
                torch.rand(1).device.type,
                torch.is_autocast_enabled("cpu"),
            )
        )
    assert thread != threading.get_ident()
    assert (inference, device, autocast) == (False, "cpu", False)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_elsewhere_raises_what_was_raised():
    with pytest.raises(ZeroDivisionError):
        elsewhere(lambda: 1 / 0)

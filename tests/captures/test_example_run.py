"""What an exported graph would lose or do otherwise is found by running copies; what it keeps is let through."""

import random

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import noble_fx
from noble_fx import CaptureError
from noble_fx.captures.example_run import watched_run
from tests.models import loud

ELSEWHERE = torch.zeros(8)


class Rounded(torch.autograd.Function):
    """Straight through: round(x), with the gradient of x."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Model(nn.Module):
    """Two layers, a buffer, a tensor in an attribute and parameters in a list, with a forward of its own."""

    def __init__(self, run):
        super().__init__()
        self.a, self.b, self.run = nn.Linear(8, 8), nn.Linear(8, 8), run
        self.register_buffer("steps", torch.zeros(()))
        self.table, self.weights = torch.linspace(0, 1, 8), [self.a.weight]

    def forward(self, x):
        return self.run(self, x)


def counted(self, x):
    self.count = 3
    return self.b(self.a(x))


def changes_elsewhere(self, x):
    ELSEWHERE.add_(1)
    return self.b(self.a(x)) + ELSEWHERE


def clamps_its_weight(self, x):
    with torch.no_grad():
        self.a.weight.clamp_(-0.01, 0.01)
    return self.b(self.a(x))


def hooks_a_gradient(self, x):
    h = self.a(x)
    if h.requires_grad:
        h.register_hook(lambda grad: 2 * grad)
    return self.b(h)


def prints(self, x):
    print(end="")
    return self.b(self.a(x))


def checkpoints(self, x):
    return torch.utils.checkpoint.checkpoint(lambda t: self.b(self.a(t)), x, use_reentrant=False)


def one_or_both(condition):
    return lambda self, x: self.b(self.a(x)) if condition() else self.a(x)


DECLINED = {
    "a backward of its own": (lambda self, x: self.b(Rounded.apply(self.a(x))), "other gradients"),
    "a hook on a gradient": (hooks_a_gradient, "other gradients"),
    "a weight in a list": (lambda self, x: self.b(x @ self.weights[0].T), "other gradients"),
    "the grad mode": (one_or_both(torch.is_grad_enabled), "another result than its forward in train mode"),
    "compiling": (one_or_both(torch.compiler.is_compiling), "another result"),
    "exporting": (one_or_both(torch.compiler.is_exporting), "another result"),
    "Python's random": (lambda self, x: self.b(self.a(x)) * random.random(), "random numbers of Python's"),
    "NumPy's random": (lambda self, x: self.b(self.a(x)) * float(np.random.rand()), "random numbers of NumPy's"),
    "sets an attribute": (counted, "forward sets 'count'"),
    "changes a tensor elsewhere": (changes_elsewhere, r"changes a tensor of shape \[8\] in place"),
    "changes a weight": (clamps_its_weight, r"changes a tensor of shape \[8, 8\] in place"),
    "prints": (prints, r"test_example_run.py:\d+ prints"),
    "checkpoints": (checkpoints, r"test_example_run.py:\d+ computes activations anew"),
}


@pytest.mark.parametrize(("run", "reason"), DECLINED.values(), ids=DECLINED)
def test_what_a_graph_would_not_do_declines_and_changes_nothing(run, reason):
    model, x = Model(run), torch.randn(4, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    python, numpy, torchs = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    with pytest.raises(CaptureError, match=f"{reason}.*What works for this model: capture='modules'"):
        noble_fx.transform(model, rank=2, select=".*", capture="export", example_inputs=(x,))
    assert (python, numpy) == (random.getstate(), str(np.random.get_state()))
    assert torch.equal(torchs, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not ELSEWHERE.any()
    assert type(model.a) is nn.Linear
    assert not hasattr(model, "count")


def counts_in_place(self, x):
    self.steps.add_(1)
    return self.b(self.a(x)) * self.steps


def counts_by_setting(self, x):
    self.steps = self.steps + 1
    return self.b(self.a(x)) * self.steps


def without_gradients(self, x):
    with torch.no_grad():
        h = self.a(x)
    return self.b(h)


def makes_a_table(self, x):
    self.steps.add_(1)
    if not hasattr(self, "made"):
        self.made = torch.arange(8.0)
    return self.b(self.a(x)) + self.made * self.steps


KEPT = {
    "a table made once": makes_a_table,
    "a buffer in place": counts_in_place,
    "a buffer set": counts_by_setting,
    "no_grad": without_gradients,
    "detach": lambda self, x: self.b(self.a(x).detach()) + self.a(x),
    "dropout": lambda self, x: self.b(torch.dropout(self.a(x), 0.5, self.training)),
    "noise": lambda self, x: self.b(self.a(x) + torch.randn_like(x)),
    "a tensor in an attribute": lambda self, x: self.b(self.a(x)) + self.table,
    "its input in place": lambda self, x: self.b(self.a(x.clone().mul_(2))),
}


@pytest.mark.parametrize("run", KEPT.values(), ids=KEPT)
def test_what_a_graph_keeps_is_the_same_in_value_gradient_and_buffers(run):
    def trained(capture):
        torch.manual_seed(0)
        model, x = Model(run), torch.randn(4, 8)
        given = {"example_inputs": (x,)} if capture == "export" else {}
        loud(noble_fx.transform(model, rank=2, select=["b"], seed=0, capture=capture, **given))
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.01), []
        for step in range(3):
            torch.manual_seed(step)
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses), model.steps

    losses, steps = trained("export")
    expected, counted = trained("modules")
    torch.testing.assert_close(losses, expected)
    assert steps == counted


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_trains_beside_the_branches(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn, self.head = nn.Linear(8, 8), kind(8, 8, batch_first=True), nn.Linear(8, 8)

        def forward(self, x):
            return self.head(self.rnn(self.embed(x))[0])

    x = torch.randn(2, 5, 8)
    made = noble_fx.transform(Recurrent(), rank=2, select=["embed", "head"], capture="export", example_inputs=(x,))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    before = made.rnn.weight_hh_l0.detach().clone()
    for _ in range(2):
        made(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(made.rnn.weight_hh_l0, before)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_modules_inside_are_refused_and_those_on_the_whole_run_once(register):
    x, calls = torch.randn(4, 8), []
    model = Model(lambda self, x: self.b(self.a(x)))
    handle = getattr(model.a, register)(lambda *args: calls.append("inside"))
    with pytest.raises(CaptureError, match="a has hooks, which a graph would not call"):
        noble_fx.transform(model, rank=2, select=".*", capture="export", example_inputs=(x,))
    handle.remove()
    getattr(model, register)(lambda *args: calls.append("whole"))
    noble_fx.transform(model, rank=2, select=".*", capture="export", example_inputs=(x,))
    assert not calls
    model(x)
    assert calls == ["whole"]


def test_hooks_on_parameters_and_gradients_are_left_alone():
    model, x, calls = Model(lambda self, x: self.b(self.a(x))), torch.randn(4, 8), []
    model.a.weight.register_hook(calls.append)
    model.a.weight.grad = torch.ones(8, 8)
    noble_fx.transform(model, rank=2, select=".*", capture="export", example_inputs=(x,))
    assert not calls
    assert torch.equal(model.a.weight.grad, torch.ones(8, 8))


def test_a_failure_of_the_model_itself_is_noted_and_not_raised():
    model = Model(lambda self, x: self.b(x[:, :3]))
    run = watched_run(model, {"x": torch.randn(4, 8)}, training=True)
    assert isinstance(run.error, RuntimeError)
    assert run.results == []

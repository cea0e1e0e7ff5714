"""A block with a branch around it against the formula in float64: y = block(x) + noble(x), whatever form y has."""

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.errors import CaptureError
from noble_fx.layers.block import AroundBlock, add_to_block, hidden_of, with_hidden
from tests.models import Block, loud

Pair = namedtuple("Pair", "hidden cache")


class Told(Block):
    """A block whose result is of the form that it is told."""

    form = staticmethod(lambda y: y)

    def forward(self, x, scale=1.0):
        return self.form(super().forward(x) * scale)


class Stack(nn.Module):
    def __init__(self, by_name=False):
        super().__init__()
        self.layers = nn.ModuleList(Told(16) for _ in range(2))
        self.by_name = by_name

    def forward(self, x):
        for layer in self.layers:
            y = layer(x=x) if self.by_name else layer(x, scale=0.5)
            x = y if isinstance(y, torch.Tensor) else y[0]
        return x


def around(**settings):
    torch.manual_seed(0)
    model = Stack(**settings).double().eval()
    return loud(noble_fx.transform(model, rank=4, scope="block", seed=0))


X = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("by_name", [False, True])
def test_it_is_the_block_and_its_branch(by_name):
    model = around(by_name=by_name)
    plain = copy.deepcopy(model)
    noble_fx.remove(plain)
    for layer, other in zip(plain.layers, model.layers, strict=True):
        branch = other.noble
        layer.register_forward_hook(
            lambda _, args, kwargs, y, b=branch: y + b(kwargs.get("x", *args)), with_kwargs=True
        )
    x, same = X.clone().requires_grad_(), X.clone().requires_grad_()
    expected = plain(x)
    torch.testing.assert_close(model(same), expected)
    ours = torch.autograd.grad(model(same).square().sum(), [same, *model.parameters()])
    theirs = torch.autograd.grad(
        expected.square().sum(), [x, *(dict(plain.named_parameters()) | _branches(model)).values()]
    )
    by_shape = sorted(g.square().sum().item() for g in theirs)
    torch.testing.assert_close(sorted(g.square().sum().item() for g in ours), by_shape)


def _branches(model):
    return {name: p for name, p in model.named_parameters() if ".noble." in name}


@pytest.mark.parametrize("form", [tuple, list, Pair._make])
def test_the_hidden_state_is_the_first_entry(form):
    layer = around().layers[0]
    expected = layer(X)
    layer.form = lambda y: form((y, "cache"))
    result = layer(X)
    assert (type(result), result[1]) == (type(form((0, 1))), "cache")
    assert torch.equal(result[0], expected)
    assert torch.equal(hidden_of(result), expected)


def test_an_input_that_is_changed_in_place_goes_in_as_it_was():
    layer = around().layers[0]

    class InPlace(Block):
        def forward(self, x):
            return x.mul_(2)

    layer.__class__ = type("Noble", (AroundBlock, InPlace), {"_input_name": "x"})
    with torch.no_grad():
        torch.testing.assert_close(layer(X.clone()), 2 * X + layer.noble(X))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda y: {"hidden": y}, "Told gives a dict, in which nobody knows the hidden state"),
        (lambda y: (), "gives a tuple, in which"),
        (lambda y: y[:, :1], r"gives \[2, 1, 16\] where its hidden state was \[2, 5, 16\]"),
        (lambda y: (None, y), "gives a NoneType where"),
    ],
)
def test_a_result_that_does_not_fit_is_an_error(form, message):
    layer = around().layers[0]
    layer.form = form
    with pytest.raises(CaptureError, match=message):
        layer(X)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.movedim(-1, 1), r"Told was called with \[2, 16, 5\] for 'x', where its hidden state \[.., 16\] belongs"),
        ((X, X), "with a tuple for 'x'"),
    ],
)
def test_an_input_that_is_no_hidden_state_is_an_error(x, message):
    with pytest.raises(CaptureError, match=message):
        around().layers[0](x)


def test_it_keeps_its_class_name_and_is_copied_and_pickled():
    model = around()
    assert type(model.layers[0]).__name__ == "Told"
    assert isinstance(model.layers[0], Told)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), model(X))


def test_hidden_states_of_another_dtype_than_the_weights():
    layer = around().layers[0].float()
    layer.form = lambda y: y.double()
    block = Told.forward
    layer.__class__ = type("Cast", (AroundBlock, Told), {"_input_name": "x"})
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Told, "forward", lambda self, x: block(self, x.float()))
        expected = block(layer, X.float()) + layer.noble(X.float()).double()
        torch.testing.assert_close(layer(X), expected)


def test_autocast():
    model = around().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(X.float())
    assert torch.isfinite(y).all()
    assert (y.double() - model.double()(X)).abs().max() < 0.5


def test_the_sum_has_the_dtype_of_the_block():
    assert add_to_block(torch.ones(2), torch.ones(2, dtype=torch.float64)).dtype is torch.float32
    assert torch.equal(with_hidden((torch.ones(2), 1), lambda y: y + 1)[0], torch.full((2,), 2.0))

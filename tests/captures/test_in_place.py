"""A captured model is the user's own object, whose class has the user's among its bases."""

import copy

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError
from tests.captures.test_fx import reloaded
from tests.models import loud


class Surface(nn.Module):
    """Constants, a property, methods, an overridden train() and a hook that reads old checkpoints."""

    WIDTH = 8

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.renamed = 0
        self.register_load_state_dict_pre_hook(self._rename)
        self.root = [self]  # a list, so that it is no submodule

    def _rename(self, module, state, *rest):
        assert module is self
        self.renamed += 1
        for key in [key for key in state if key.startswith("old.")]:
            state[key[4:]] = state.pop(key)

    @property
    def device(self):
        return self.a.weight.device

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def twice(self, x):
        return self(self(x))

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def examples(capture: str, x: torch.Tensor) -> dict:
    return {"example_inputs": (x,)} if capture == "export" else {}


@pytest.mark.parametrize("capture", ["fx", "export"])
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, reloaded], ids=["itself", "deepcopy", "pickle"])
def test_the_users_class_lives_on(capture, copied):
    torch.manual_seed(0)
    plain, x = Surface().train(), torch.randn(4, 8)
    made = loud(noble_fx.transform(plain, rank=2, select="all", capture=capture, seed=0, **examples(capture, x)))
    assert made is plain
    other = copied(made)
    assert isinstance(other, Surface)
    assert type(other).__name__ == "Surface"
    assert (other.WIDTH, other.device.type) == (8, "cpu")
    other.train()
    assert other.training
    assert not other.norm.training
    assert torch.equal(other.twice(x), other(other(x)))
    assert torch.equal(other(x), made(x))
    state = other.state_dict()
    other.load_state_dict({("old." + key if key.startswith("a.") else key): value for key, value in state.items()})
    assert other.renamed == 1
    noble_fx.remove(other)
    assert type(other) is Surface
    assert not set(vars(other)) - set(vars(Surface()))
    assert other(x).shape == (4, 8)


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_references_to_the_whole_lead_to_the_copy(capture):
    x = torch.randn(4, 8)
    made = noble_fx.transform(Surface(), rank=2, select="all", capture=capture, **examples(capture, x))
    for other in (copy.deepcopy(made), reloaded(made)):
        assert other.root[0] is other


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_a_shallow_copy_shares_its_layers(capture):
    x = torch.randn(4, 8)
    made = loud(noble_fx.transform(Surface(), rank=2, select="all", capture=capture, **examples(capture, x))).eval()
    other = copy.copy(made)
    assert other.a is made.a
    assert torch.equal(other(x), made(x))


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_a_sequential_can_be_indexed_sliced_and_iterated(capture):
    x = torch.randn(4, 8)
    layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    made = loud(noble_fx.transform(layers, rank=2, capture=capture, **examples(capture, x)))
    assert len(made) == 3
    assert [type(layer) for layer in made] == [noble_fx.NobleLinear, nn.ReLU, noble_fx.NobleLinear]
    assert made[0] is next(iter(made))
    assert type(made[:2]) is nn.Sequential
    torch.testing.assert_close(made[2](made[:2](x)), made(x))
    torch._dynamo.reset()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x))


class Final(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def __init_subclass__(cls, **settings):
        raise TypeError("it is final")

    def forward(self, x):
        return self.a(x)


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_a_class_that_none_can_be_made_of_is_refused_and_left_as_it_was(capture):
    model, x = Final(), torch.randn(4, 8)
    expected = model(x)
    with pytest.raises(CaptureError, match=r"Final cannot be a base .* it is final; use capture='modules'"):
        noble_fx.transform(model, rank=2, select="all", capture=capture, **examples(capture, x))
    assert type(model) is Final
    assert type(model.a) is nn.Linear
    assert set(vars(model)) == set(vars(Final()))
    assert torch.equal(model(x), expected)
    assert noble_fx.transform(model, rank=2, select="all") is model


class CopiesItself(Surface):
    copies = 0

    def __deepcopy__(self, memo):
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        vars(other).update(copy.deepcopy(vars(self), memo))
        other.copies = self.copies + 1
        return other


def test_a_deepcopy_of_the_users_own_is_what_copies():
    x = torch.randn(4, 8)
    made = loud(noble_fx.transform(CopiesItself(), rank=2, select="all", capture="fx")).eval()
    other = copy.deepcopy(made)
    assert other.copies == 1
    assert type(other).__name__ == "CopiesItself"
    assert torch.equal(other(x), made(x))
    with torch.no_grad():
        other.a.noble.up.zero_()
    assert not torch.equal(other(x), made(x))


def test_hooks_that_save_a_state_run():
    made = noble_fx.transform(Surface(), rank=2, select="all", capture="fx")
    made.register_state_dict_post_hook(lambda module, state, prefix, metadata: state.update(version=torch.ones(())))
    for model in (made, copy.deepcopy(made), copy.copy(made)):
        assert "version" in model.state_dict()

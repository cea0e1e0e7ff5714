"""Layer classes and their rows: subclasses, registered classes, refusals, and why a site is eager."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx
from noble_fx import ConfigError, NobleLinear, Refusal
from noble_fx.attach.attach import named_branches
from noble_fx.layers import registry
from tests.models import loud


class Falcon(nn.Linear):
    """transformers' FalconLinear: the same map, written by hand."""

    def forward(self, input: Tensor) -> Tensor:
        y = input @ self.weight.T
        return y if self.bias is None else y + self.bias


class Whisper(nn.Linear):
    """openai-whisper's Linear: the weight follows x's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Scaled(nn.Linear):
    """A layer that computes more than a linear map, and takes more than x."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return torch.tanh(super().forward(x)) * scale


class Renamed(nn.Linear):
    """torchtitan's Linear: another class, nn.Linear's forward."""


SUBCLASSES = [Falcon, Whisper, Scaled, Renamed]


def augmented(layer: nn.Module, **settings) -> nn.Module:
    model = nn.Sequential(layer)
    noble_fx.transform(model, rank=2, select="all", **settings)
    return loud(model)


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_a_subclass_gets_a_branch_beside_whatever_it_computes(kind):
    torch.manual_seed(0)
    layer, x = kind(8, 6), torch.randn(3, 8)
    plain = copy.deepcopy(layer)
    model = augmented(layer)
    assert model[0] is layer
    assert isinstance(layer, kind)
    assert [name for name, _ in plain.named_parameters()] == ["weight", "bias"]
    torch.testing.assert_close(layer(x), plain(x) + layer.noble(x))
    with noble_fx.disabled(model):
        assert torch.equal(layer(x), plain(x))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again[0]) is type(layer)
        assert torch.equal(again(x), model(x))
    noble_fx.remove(model)
    assert type(layer) is kind
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_only_the_forward_of_the_known_class_is_fused(kind):
    model = augmented(kind(8, 6))
    (site,) = noble_fx.sites(model)
    expected = "" if kind is Renamed else f"{kind.__qualname__} has a forward of its own, beside which the branch runs"
    assert (site.kind, site.unfused) == (kind.__name__, expected)


def test_a_subclass_is_called_as_its_class_is():
    layer, x = Scaled(8, 6), torch.randn(3, 8)
    model = augmented(layer)
    plain = Scaled.forward
    for call in (lambda: layer(x, 2.0), lambda: layer(x, scale=2.0), lambda: layer(x=x, scale=2.0)):
        torch.testing.assert_close(call(), plain(layer, x, 2.0) + layer.noble(x))
    del model


def test_a_layer_that_follows_the_dtype_of_x_keeps_it():
    layer = Whisper(8, 6)
    augmented(layer)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y.float(), Whisper.forward(layer, x).float() + layer.noble(x.float()), atol=0.05, rtol=0.05
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_in_which_nothing_is_trained_are_left_out(dtype):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight = nn.Parameter(torch.zeros(8, 8).to(dtype), requires_grad=False)
    assert str(dtype) in {site.fqn: site.reason for site in noble_fx.sites(model, rank=2)}["0"]


def test_training_in_place_of_the_plain_class():
    model, x = augmented(Falcon(8, 6)), torch.randn(3, 8)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# --- registered classes ---


class Transposed(nn.Module):
    """A linear layer that is no nn.Linear: weight [K, N]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def rows(layer):
    return layer.inputs, layer.outputs


@pytest.fixture(autouse=True)
def registrations(monkeypatch):
    monkeypatch.setattr(registry, "_ROWS", dict(registry._ROWS))


@pytest.mark.parametrize("fused", [True, False])
def test_a_registered_class_carries_branches(fused, tmp_path):
    (site,) = noble_fx.sites(nn.Sequential(Transposed(8, 6)))
    assert "noble_fx.register_layer makes Transposed one" in site.reason
    noble_fx.register_layer(Transposed, shape=rows, layout="[K, N]", fused=fused)
    model, x = augmented(Transposed(8, 6)), torch.randn(3, 8)
    (site,) = noble_fx.sites(model)
    assert (site.kind, site.in_features, site.out_features) == ("Transposed", 8, 6)
    assert bool(site.unfused) == (not fused)
    torch.testing.assert_close(model(x), Transposed.forward(model[0], x) + model[0].noble(x))
    noble_fx.save(model, tmp_path / "folder")
    again = noble_fx.load(nn.Sequential(Transposed(8, 6)), tmp_path / "folder")
    assert torch.equal(again(x), model(x))
    assert noble_fx.export_onnx(model, (x,), tmp_path / "model.onnx").largest_error < 1e-4


def test_a_registered_class_may_refuse_an_instance():
    noble_fx.register_layer(
        Transposed,
        shape=rows,
        layout="[K, N]",
        obstacle=lambda layer: Refusal("too small") if layer.inputs < 4 else None,
    )
    model = nn.Sequential(Transposed(3, 9), Transposed(8, 6))
    assert {site.fqn: site.reason for site in noble_fx.sites(model, rank=2)}["0"] == "too small"
    noble_fx.transform(model, rank=2)
    assert list(named_branches(model)) == ["1"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"shape": rows}, r"registered for Transposed says \[N, K\] = \[6, 8\], and its weight is \[8, 6\]"),
        ({"shape": lambda layer: (8, 7), "layout": "[K, N]"}, r"says \[K, N\] = \[8, 7\], and its weight is \[8, 6\]"),
        ({}, "registered for Transposed fails in its shape: AttributeError: .*in_features"),
        ({"shape": rows, "layout": "[K, N]", "obstacle": lambda layer: "no"}, "gives 'no', not Refusal"),
        ({"shape": lambda layer: 8, "layout": "[K, N]"}, r"gives 8 as its shape, where \(K, N\) belongs"),
    ],
)
def test_a_row_that_lies_about_its_shape_is_one_error(row, message):
    noble_fx.register_layer(Transposed, **row)
    model = nn.Sequential(Transposed(8, 6))
    with pytest.raises(ConfigError, match=message):
        noble_fx.transform(model, rank=2)
    assert type(model[0]) is Transposed


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (Transposed, {"layout": "[K]"}, r"layout='\[K\]' of Transposed is unknown"),
        (dict, {}, "takes a class of nn.Module"),
        (Transposed, {"shape": (8, 6)}, r"shape=\(8, 6\) of Transposed must be a function of a layer"),
        (Transposed, {"obstacle": "no"}, "obstacle='no' of Transposed must be a function of a layer"),
    ],
)
def test_what_cannot_be_registered(cls, settings, message):
    with pytest.raises(ConfigError, match=message):
        noble_fx.register_layer(cls, **settings)


# --- why a site is eager ---


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Linear(8, 8), ""),
        (nn.Conv1d(8, 8, 1), "a 1x1 convolution, whose channels are not the last dimension"),
        (Falcon(8, 8), "Falcon has a forward of its own, beside which the branch runs"),
    ],
)
def test_why_a_site_is_eager_is_decided_at_one_place(layer, reason):
    refusal = registry.why_eager(layer)
    assert (refusal.reason if refusal else "") == reason


def test_a_layer_built_by_hand_is_fused_like_any_other():
    layer = NobleLinear.build(8, 6, rank=2)
    assert (layer.noble.unfused, bool(layer.noble.key)) == ("", True)
    assert NobleLinear.build(8, 6, rank=2, fuse=False).noble.unfused == "fuse=False"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layer: setattr(layer, "forward", lambda x: x), "its forward was replaced on the instance"),
        (lambda layer: setattr(layer, "noble", nn.Identity()), "already has an attribute named 'noble'"),
        (lambda layer: nn.utils.parametrizations.weight_norm(layer), "its weight is parametrized"),
    ],
)
def test_an_instance_that_was_changed_is_left_out(change, reason):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    change(model[0])
    found = {site.fqn: site for site in noble_fx.sites(model, rank=2)}
    assert reason in found["0"].reason
    assert found["1"].selected

import pytest
import torch
from torch import nn

from noble_fx import PRESETS, ConfigError, activation_names, register_activation
from noble_fx.branches.activations import _USER, build_activation

EVERY = [
    "identity relu leaky_relu gelu silu tanh cos cosnet cosnet_double swiglu swiglu_net silu_shift",
    "gelu_net silu_net tanh_net leaky_relu_net gelu_scale silu_scale tanh_scale leaky_relu_scale",
    "neg_silu flip_silu neg_gelu flip_gelu",
]


@pytest.fixture
def clean_registry():
    before = dict(_USER)
    yield
    _USER.clear()
    _USER.update(before)


def test_the_whole_zoo_is_there():
    assert set(activation_names()) >= {name for line in EVERY for name in line.split()}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", activation_names())
def test_every_activation_keeps_the_shape(name, preset):
    act = build_activation(name, 6, PRESETS[preset])
    h = torch.randn(2, 3, 6)
    t = act(h)
    assert t.shape == h.shape
    assert torch.isfinite(t).all()


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("neg_silu", lambda h: -torch.nn.functional.silu(h)),
        ("flip_gelu", lambda h: -torch.nn.functional.gelu(-h)),
        ("leaky_relu", lambda h: torch.where(h > 0, h, 0.01 * h)),
        ("silu_shift", lambda h: torch.nn.functional.silu(h)),  # the shift starts at zero
        ("identity", lambda h: h),
    ],
)
def test_formulas(name, formula):
    h = torch.randn(4, 5)
    torch.testing.assert_close(build_activation(name, 5, PRESETS["paper"])(h), formula(h))


def test_cosnet_is_the_papers_formula():
    act = build_activation("cosnet", 5, PRESETS["reference"])
    h = torch.randn(4, 5)
    inner = torch.cos(act.first.frequency * h + act.first.phase) @ act.mixer.weight.t() + act.mixer.bias
    torch.testing.assert_close(act(h), torch.cos(act.second.frequency * inner + act.second.phase))


def test_the_gate_half_goes_through_silu():
    act = build_activation("swiglu", 3, PRESETS["paper"])
    h = torch.randn(4, 3)
    gate, value = (h @ act.mixer.weight.t()).chunk(2, dim=-1)
    torch.testing.assert_close(act(h), torch.nn.functional.silu(gate) * value)


@pytest.mark.parametrize(("theirs", "ours"), [("none", "identity"), ("cos_net", "cosnet"), ("leakyrelu", "leaky_relu")])
def test_the_authors_names_are_understood(theirs, ours):
    assert type(build_activation(theirs, 4, PRESETS["paper"])) is type(build_activation(ours, 4, PRESETS["paper"]))


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match=r"act='cosnt' is unknown; nearest: 'cosnet'.*known: .*swiglu"):
        build_activation("cosnt", 4, PRESETS["paper"])


def test_a_registered_activation_is_built_by_name(clean_registry):
    register_activation("softplus", lambda rank: nn.Softplus())
    assert isinstance(build_activation("softplus", 4, PRESETS["paper"]), nn.Softplus)
    assert "softplus" in activation_names()


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [
        ("cosnet", nn.GELU, "already an activation of noble_fx"),
        ("two words", nn.GELU, "not a name"),
        ("fine", "not callable", r"callable\(rank\)"),
    ],
)
def test_registration_refuses(name, factory, message, clean_registry):
    with pytest.raises(ConfigError, match=message):
        register_activation(name, factory)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda rank: nn.Linear(rank, rank + 1), r"maps \[3, 4\] to \[3, 5\]"),
        (lambda rank: nn.Linear(rank + 1, rank), r"fails on an input \[3, 4\]"),
        (lambda rank: torch.cos, "must give an nn.Module"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused(factory, message):
    with pytest.raises(ConfigError, match=message):
        build_activation(factory, 4, PRESETS["paper"])


@pytest.mark.parametrize("factory", [nn.ReLU(), nn.Linear, len])
def test_a_factory_that_fails_is_named(factory):
    with pytest.raises(ConfigError, match=r"act \w+ fails for rank 4: TypeError: .*; it must be a name or a callable"):
        build_activation(factory, 4, PRESETS["paper"])

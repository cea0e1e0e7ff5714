import functools
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from noble_fx import PRESETS, ConfigError, activation_names, register_activation
from noble_fx.branches.activations import _USER, build_activation
from noble_fx.branches.keys import activation_key, template
from noble_fx.branches.trace import activation_program

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


def test_keys_are_equal_for_equal_structures_only():
    def key(name: str, rank: int = 4, preset: str = "paper") -> str:
        return activation_key(build_activation(name, rank, PRESETS[preset]), name)

    assert key("cosnet") == key("cosnet")
    assert len({key("cosnet"), key("cosnet", preset="reference"), key("cosnet", rank=5), key("cos")}) == 4


def test_a_class_defined_again_under_its_name_gets_its_own_key():
    def define(sign: float) -> type[nn.Module]:
        class Act(nn.Module):
            def forward(self, h):
                return sign * h

        return Act

    first, second = define(1.0)(), define(-1.0)()
    keys = activation_key(first, "act"), activation_key(second, "act")
    assert keys[0] != keys[1]
    assert type(template(keys[0])) is type(first)
    assert type(template(keys[1])) is type(second)


def test_an_unknown_key_says_so():
    with pytest.raises(ConfigError, match="not known in this process"):
        template("nothing-000")


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


def power(exponent):
    return lambda h: h**exponent


def test_activations_that_hold_functions_are_told_apart_by_what_these_do():
    functions = [torch.sin, torch.cos, lambda h: h + 1, lambda h: h + 2, power(2), power(3), nn.functional.gelu]
    functions += [functools.partial(nn.functional.gelu, approximate="tanh"), functools.partial(nn.functional.gelu)]
    keys = [activation_key(Function(one), "mine") for one in functions]
    assert len(set(keys)) == len(functions)
    assert keys == [activation_key(Function(one), "mine") for one in functions]
    assert activation_key(Function(power(2)), "mine") == keys[4]
    h = torch.randn(3, 4)
    for key, function in zip(keys, functions, strict=True):
        torch.testing.assert_close(activation_program(key, 4, torch.float32).forward(h), function(h))


def test_the_key_of_a_function_is_the_same_in_every_process():
    code = (
        "import torch; from noble_fx.branches.keys import activation_key\n"
        "class F(torch.nn.Module):\n"
        "    def __init__(self, f): super().__init__(); self.f = f\n"
        "print(activation_key(F(lambda h: (lambda a: a * 2)(h) + {1, 2}.pop()), 'mine'))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1

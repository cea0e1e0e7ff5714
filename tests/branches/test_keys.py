"""Keys say what is computed: equal for equal maths wherever and whenever, different for anything that shows."""

import functools
import os
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx import PRESETS, ConfigError, NobleLinear, activation_names
from noble_fx.branches import keys
from noble_fx.branches.activations import Gate, Mixer, build_activation
from noble_fx.branches.keys import activation_key, template, why_not_recorded
from noble_fx.branches.trace import activation_program, why_untraceable

RANK = 4


def key_of(act: nn.Module, rank: int = RANK) -> str:
    return activation_key(act, "mine", rank)


def recorded(act: nn.Module) -> str:
    """The key of what is recorded, whether or not its settings are known."""
    return keys._recorded(act, "mine", RANK).key


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


def power(exponent):
    return lambda h: h**exponent


def test_what_is_done_without_gradients_shows():
    plain, asks = Function(lambda h: h), Function(lambda h: h if torch.is_grad_enabled() else 2 * h)
    assert key_of(plain) != key_of(asks)


# --- what shows -------------------------------------------------------------------------------------------------------


class Private(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self._gain = gain

    def forward(self, h):
        return self._gain * h.tanh()


class Slots:
    __slots__ = ("gain",)

    def __init__(self, gain):
        self.gain = gain


class Held(nn.Module):
    """Its gain stands where no list of attributes shows it."""

    def __init__(self, holder):
        super().__init__()
        self.holder = holder

    def forward(self, h):
        return h * self.holder.gain


class Table(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, h):
        return h * torch.from_numpy(self.table)


class Scaled(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.register_buffer("scale", function(RANK))

    def forward(self, h):
        return h * self.scale


def defined_again(sign: float) -> nn.Module:
    class Act(nn.Module):
        def forward(self, h):
            return sign * h

    return Act()


def derived(factor: float) -> nn.Module:
    class Derived(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h.clone()

        @staticmethod
        def backward(ctx, dt):
            return factor * dt

    return Function(Derived.apply)


DIFFERENT = {
    "private": (Private(1.0), Private(5.0)),
    "slots": (Held(Slots(1.0)), Held(Slots(2.0))),
    "numpy": (Table(numpy.float32([1, 2, 3, 4])), Table(numpy.float32([1, 2, 3, 5]))),
    "captured number": (Function(power(2)), Function(power(3))),
    "class defined again": (defined_again(1.0), defined_again(-1.0)),
    "shape of a buffer": (Scaled(torch.ones), Scaled(lambda rank: torch.ones(1, rank))),
    "dtype of a buffer": (Scaled(torch.ones), Scaled(lambda rank: torch.ones(rank, dtype=torch.int64))),
    "derivative": (derived(1.0), derived(2.0)),
    "cast": (Function(lambda h: h.cos()), Function(lambda h: h.float().cos().to(h.dtype))),
    "eval mode": (Function(lambda h: h), nn.Dropout(0.5)),
    "setting": (nn.LeakyReLU(0.01), nn.LeakyReLU(0.02)),
    "approximation": (nn.GELU(), nn.GELU("tanh")),
    "places of one module": (nn.Sequential(*[a := nn.Tanh(), b := nn.GELU(), a]), nn.Sequential(a, b, b)),
}


@pytest.mark.parametrize("name", list(DIFFERENT))
def test_activations_that_differ_have_two_keys(name):
    one, other = DIFFERENT[name]
    assert key_of(one) == key_of(one)
    assert key_of(one) != key_of(other)


def test_a_fused_layer_runs_its_own_activation():
    x = torch.randn(5, 8)
    for gain in (1.0, 5.0):
        layer = NobleLinear.build(8, 8, RANK, act=lambda rank, gain=gain: Private(gain))
        nn.init.normal_(layer.noble.up)
        assert layer.noble.unfused == ""
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) + layer.noble(x))


def test_the_mode_alone_makes_a_key_of_its_own_and_no_graph():
    class Flagged(nn.Module):
        def forward(self, h):
            return 2 * h if self.training else h

    plain, flagged = key_of(Function(lambda h: 2 * h)), key_of(Flagged())
    assert plain != flagged
    assert why_untraceable(plain, RANK) is None
    assert "in train mode than in eval mode" in why_untraceable(flagged, RANK).reason


# --- what does not show -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", activation_names())
def test_equal_structures_have_equal_keys(name):
    one, other = (build_activation(name, RANK, PRESETS["reference"]) for _ in range(2))
    assert key_of(one) == key_of(other.to(torch.bfloat16)) == key_of(one.eval().requires_grad_(False))
    assert key_of(one) == key_of(other.to("meta"))
    assert key_of(one) == recorded(other)


def test_keys_of_the_zoo_differ_by_what_is_computed():
    def key(name: str, rank: int = RANK, preset: str = "paper") -> str:
        return key_of(build_activation(name, rank, PRESETS[preset]), rank)

    assert len({key("cosnet"), key("cosnet", preset="reference"), key("cosnet", rank=5), key("cos")}) == 4
    names = activation_names()
    assert len({key(name) for name in names}) == len(names)


def test_a_class_of_another_name_and_place_has_the_key_of_its_maths():
    moved = type("Renamed", (Private,), {"__module__": "elsewhere"})(5.0)
    assert key_of(moved) == key_of(Private(5.0)) == key_of(Function(lambda h: 5.0 * h.tanh()))


def test_functions_are_told_apart_by_what_they_do():
    functions = [torch.sin, torch.cos, lambda h: h + 1, lambda h: h + 2, power(2), power(3), F.gelu]
    functions.append(functools.partial(F.gelu, approximate="tanh"))
    of_each = [key_of(Function(function)) for function in functions]
    assert len(set(of_each)) == len(functions)
    assert key_of(Function(power(2))) == of_each[4]
    assert key_of(Function(functools.partial(F.gelu))) == of_each[6] == key_of(nn.GELU())
    h = torch.randn(3, RANK)
    for key, function in zip(of_each, functions, strict=True):
        torch.testing.assert_close(activation_program(key, RANK, torch.float32).forward(h), function(h))


def test_the_key_is_the_same_in_every_process():
    code = (
        "import torch; from noble_fx import PRESETS; from noble_fx.branches.keys import activation_key\n"
        "from noble_fx.branches.activations import build_activation\n"
        "class F(torch.nn.Module):\n"
        "    def __init__(self, f): super().__init__(); self.f = f\n"
        "    def forward(self, h): return self.f(h) * torch.tensor([1., 2., 3., 4.])\n"
        "print(activation_key(F(lambda h: (lambda a: a * 2)(h) + {1, 2}.pop()), 'mine', 4))\n"
        "print(activation_key(build_activation('cosnet', 4, PRESETS['paper']), 'mine', 4))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    (lines,) = printed
    assert lines.split()[1] == key_of(build_activation("cosnet", RANK, PRESETS["paper"]))


# --- what is remembered by its settings -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(keys._SETTINGS), ids=lambda kind: kind.__name__)
def test_known_classes_have_the_settings_that_they_are_said_to_have(kind):
    arguments = {Mixer: (RANK, PRESETS["reference"]), keys.Signed: (nn.Tanh(), True), nn.Linear: (RANK, RANK)}
    arguments |= {keys.Cosine: (RANK, PRESETS["paper"]), keys.ScaleShift: (RANK,)}
    arguments |= {keys.Weighted: (torch.ones(RANK),), keys.SideBySide: (nn.Tanh(), torch.ones(1), RANK - 1)}
    act = kind(*arguments.get(kind, ()))
    assert set(keys._SETTINGS[kind]) <= set(vars(act))
    whole = act if kind is not Gate else nn.Sequential(nn.Linear(RANK, 2 * RANK), act)
    assert keys._settings(whole) is not None
    assert key_of(whole) == recorded(whole)


def overridden(act: nn.Module) -> nn.Module:
    act.forward = lambda h: h**3
    return act


class Louder(nn.Tanh):
    def forward(self, h):
        return 3 * super().forward(h)


@pytest.mark.parametrize("act", [overridden(nn.Tanh()), Louder()], ids=["forward", "subclass"])
def test_whatever_may_compute_something_else_is_recorded(act):
    assert keys._settings(act) is None
    assert keys._settings(nn.Sequential(nn.Tanh(), act)) is None
    assert key_of(act) != key_of(nn.Tanh())


def test_a_class_whose_forward_was_replaced_is_recorded(monkeypatch):
    before = key_of(nn.Tanh())
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, h: 3 * torch.tanh(h))
    assert key_of(nn.Tanh()) != before


def test_tensors_at_several_places_are_told_apart():
    def chain(tied: int | None) -> nn.Module:
        act = nn.Sequential(*(nn.Linear(RANK, RANK, bias=False) for _ in range(3)))
        if tied is not None:
            act[2].weight = act[tied].weight
        return act

    acts = chain(None), chain(0), chain(1)
    assert len({key_of(act) for act in acts}) == 3
    assert [key_of(act) for act in acts] == [recorded(act) for act in acts]


# --- what stands behind a key -----------------------------------------------------------------------------------------


def test_a_template_has_the_names_and_shapes_and_no_numbers():
    act = build_activation("cosnet", RANK, PRESETS["reference"])
    copy = template(key_of(act))
    assert copy is not act
    shapes = {name: tuple(tensor.shape) for name, tensor in copy.state_dict().items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in act.state_dict().items()}
    assert all(tensor.is_meta for tensor in copy.state_dict().values())


def test_an_unknown_key_says_so():
    with pytest.raises(ConfigError, match="not known in this process"):
        template("nothing-000")


class Fails(nn.Module):
    def forward(self, h):
        raise ValueError("not today\nnor tomorrow")


class Uncopied(nn.Module):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")

    def forward(self, h):
        return h


@pytest.mark.parametrize(("act", "reason"), [(Fails(), "ValueError while tracing: not today"), (Uncopied(), "copied")])
def test_what_cannot_be_recorded_has_a_key_and_a_reason(act, reason):
    key = key_of(act)
    assert key.startswith("mine-")
    assert reason in why_not_recorded(key).reason
    assert reason in why_untraceable(key, RANK).reason
    assert why_not_recorded(key_of(nn.Tanh())) is None


def test_a_branch_whose_activation_cannot_be_copied_runs_eagerly():
    layer = NobleLinear.build(8, 8, RANK, act=lambda rank: Uncopied())
    assert "cannot be copied" in layer.noble.unfused
    assert layer(torch.randn(3, 8)).shape == (3, 8)


# --- what is read while it is recorded --------------------------------------------------------------------------------


def test_hooks_are_none_of_the_maths_and_do_not_run():
    act, seen = nn.Sequential(nn.Tanh(), Private(2.0)), []
    before = key_of(act)
    handles = [
        act[0].register_forward_hook(lambda *args: seen.append(args)),
        nn.modules.module.register_module_forward_hook(lambda *args: seen.append(args)),
    ]
    try:
        assert key_of(act) == before
        assert why_untraceable(key_of(nn.Sequential(nn.Tanh(), Private(3.0))), RANK) is None
    finally:
        for handle in handles:
            handle.remove()
    assert not seen


def test_attributes_that_are_read_are_noted_by_module():
    found = keys.recognise(nn.Sequential(Private(2.0), nn.LeakyReLU()), "mine", RANK)
    assert {"_gain", "forward"} <= found.notes["0"].reads
    assert "negative_slope" in found.notes["1"].reads
    known = keys.recognise(nn.Sequential(nn.Tanh(), nn.LeakyReLU()), "mine", RANK)
    assert known.notes["1"].reads == {"forward", "negative_slope", "inplace"}

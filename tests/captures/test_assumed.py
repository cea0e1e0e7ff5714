"""What a captured model takes for granted: changed later, it is one clear error, in copies and pickles too."""

import copy

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError
from tests.captures.test_fx import reloaded
from tests.models import loud


class Config:
    def __init__(self, **values):
        vars(self).update(values)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.flag = nn.Linear(8, 8), True

    def step(self, x):
        return self.linear(x)

    def forward(self, x):
        return self.step(x) if self.flag else x


class Scheduled(nn.Module):
    """Reads a float, a class constant, a config, a list, a child's flag and a function."""

    WIDTH = 2

    def __init__(self):
        super().__init__()
        self.inner, self.tail = Inner(), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 8)
        self.alpha, self.epoch, self.act = 1.0, 0, torch.tanh
        self.config, self.steps = Config(scale=3.0, name="x"), [1, 2]

    def forward(self, x):
        x = self.act(self.inner(x)) * self.alpha * self.config.scale * len(self.steps) * self.WIDTH
        return self.head(self.tail(x))


X = torch.randn(4, 8)
CAPTURES = ["fx", "export"]


def made(capture, model=None):
    examples = {"example_inputs": (X,)} if capture == "export" else {}
    return loud(
        noble_fx.transform(model or Scheduled().eval(), rank=2, select=".*", seed=0, capture=capture, **examples)
    )


CHANGES = {
    "a float": (lambda m: setattr(m, "alpha", 0.5), "'alpha' was changed from 1.0 to 0.5"),
    "its type": (lambda m: setattr(m, "alpha", 1), "'alpha' was changed from 1.0 to 1 "),
    "gone": (lambda m: delattr(m, "alpha"), "'alpha' was changed from 1.0 to nothing"),
    "a constant of the class": (lambda m: setattr(m, "WIDTH", 3), "'WIDTH' was changed from 2 to 3"),
    "a child's flag": (lambda m: setattr(m.inner, "flag", False), r"'inner\.flag' was changed from True to False"),
    "a function": (lambda m: setattr(m, "act", torch.sigmoid), "'act' was changed"),
    "a config": (lambda m: setattr(m.config, "scale", 4.0), r"'config\.scale' was changed from 3.0 to 4.0"),
    "a list": (lambda m: m.steps.append(3), "'steps' was changed"),
    "a method": (lambda m: setattr(m.inner, "step", abs), r"'inner\.step' was changed"),
    "a forward": (lambda m: setattr(m.inner, "forward", abs), "the forward of 'inner' was replaced"),
    "a child": (lambda m: setattr(m, "inner", Inner()), "'inner' is another module than the graph was made with"),
    "a layer": (lambda m: setattr(m, "head", nn.Linear(8, 8)), "'head' is another module"),
    "a layer more": (lambda m: m.tail.append(nn.ReLU()), "tail has other children"),
    "a hook on a child": (lambda m: m.inner.register_forward_hook(print), "inner has other hooks"),
    "a hook on a layer": (lambda m: m.head.register_full_backward_hook(print), "head has other hooks"),
    "a hook on a branch": (lambda m: m.head.noble.act.register_forward_hook(print), "head.noble.act has other hooks"),
    "another activation": (lambda m: setattr(m.head.noble, "act", nn.Identity()), "head.noble has other children"),
}


EXPORTED_IN_SUITE = {"a float", "a constant of the class", "a config", "a child", "a hook on a child", "a layer more"}


@pytest.mark.parametrize(
    ("capture", "change", "reason"),
    [
        pytest.param(
            capture, *case, id=f"{capture}-{name}",
            marks=[pytest.mark.long] if capture == "export" and name not in EXPORTED_IN_SUITE else [],
        )
        for capture in CAPTURES
        for name, case in CHANGES.items()
    ],
)  # fmt: skip
def test_what_the_graph_has_as_a_constant_cannot_change_without_a_word(capture, change, reason):
    model = made(capture)
    model(X)
    with noble_fx.disabled(model):
        change(model)
    with pytest.raises(CaptureError, match=f"{reason}.*noble_fx.remove.*capture='modules'"):
        model(X)
    with pytest.raises(CaptureError, match=reason), noble_fx.disabled(model):
        model(X)


@pytest.mark.parametrize("capture", CAPTURES)
def test_what_forward_does_not_read_may_change(capture):
    model = made(capture)
    expected = model(X)
    model.epoch, model.config.name, model.alpha = 7, "y", 1.0
    model.probe = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, args, output: output * 2)
    model.inner.register_state_dict_post_hook(lambda *args: None)
    assert torch.equal(model(X), expected * 2)


@pytest.mark.parametrize("capture", CAPTURES)
def test_set_back_or_taken_out_it_runs_again(capture):
    model = made(capture)
    expected = model(X)
    model.alpha = 0.0
    with pytest.raises(CaptureError):
        model(X)
    model.alpha = 1.0
    assert torch.equal(model(X), expected)
    model.head = nn.Linear(8, 8)
    noble_fx.remove(model)
    model.alpha = 0.0
    assert torch.equal(model(X), Scheduled.forward(model, X))


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, reloaded], ids=["copy", "deepcopy", "pickle"])
def test_copies_look_at_their_own(capture, copied):
    model = made(capture)
    expected = model(X)
    other = copied(model)
    other.alpha = 0.0
    with pytest.raises(CaptureError, match="'alpha' was changed"):
        other(X)
    assert torch.equal(model(X), expected)
    with pytest.raises(CaptureError, match="'alpha' was changed"):  # a copy of what does not run does not run
        copied(other)(X)


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_compiled_graph_is_compiled_again_and_says_so(capture):
    torch._dynamo.reset()
    model = made(capture)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X))
    model.alpha = 0.0
    with pytest.raises(Exception, match="'alpha' was changed"):
        compiled(X)


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_global_hook_would_miss_what_is_inside(capture):
    model = made(capture)
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(CaptureError, match=r"the global hook .* would not run"):
            model(X)
    finally:
        hook.remove()
    model(X)


def test_hooks_that_only_keep_track_are_no_difference():
    from torch.utils.flop_counter import FlopCounterMode

    model = made("fx")
    with FlopCounterMode(display=False) as counter:
        model(X)
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("capture", CAPTURES)
def test_frozen_statistics_stay_frozen(capture):
    class Frozen(Scheduled):
        def train(self, mode=True):
            super().train(mode)
            self.tail[1].eval()
            return self

    model = made(capture, Frozen().train()).train()
    before = model.tail[1].running_mean.clone()
    model(X)
    assert torch.equal(model.tail[1].running_mean, before)

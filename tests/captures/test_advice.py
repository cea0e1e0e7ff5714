"""Every piece of advice is followed: it works for this model, or the message says that nothing else does."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError, ConfigError, NobleError
from noble_fx.captures.advice import advised
from noble_fx.captures.base import Examples
from noble_fx.config import NobleConfig
from tests.models import Tiny, tokens

X = torch.randn(2, 8)


class Decides(nn.Module):
    """Its Python decides on a value: no graph can hold it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x) if x.sum() < 1e9 else x


class Bare(nn.Module):
    """Multiplies with a parameter of its own: no layer is there to carry a branch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x @ self.weight


class BareAndDecides(Bare):
    def forward(self, x):
        return x @ self.weight if x.sum() < 1e9 else x


class Unnamed(Decides):
    """Takes what it gets by position alone."""

    def forward(self, *args):
        return self.layer(args[0])


class Nothing(nn.Module):
    def forward(self, x):
        return x + 1


MODELS = {
    "tiny": Tiny,
    "decides": Decides,
    "bare": Bare,
    "bare and decides": BareAndDecides,
    "unnamed": Unnamed,
    "nothing": Nothing,
    "traced": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8))),
    "narrow": lambda: nn.Sequential(nn.Linear(8, 2)),
}
SETTINGS = (
    {},
    {"capture": "modules"},
    {"capture": "fx"},
    {"capture": "export"},
    {"capture": "export", "example_inputs": True},
    {"example_inputs": True},
    {"capture": "fx", "example_inputs": True},
    {"rank": 100},
    {"select": "ffn"},
    {"select": "attention", "rank": 100},
    {"exclude": "."},
    {"select": ["layer"], "rank": 8},
)


def refusal(model, settings):
    try:
        noble_fx.transform(model, dry_run=True, **settings)
    except NobleError as error:
        return error


@pytest.mark.parametrize("name", MODELS)
def test_advice_works_or_ends(name):
    model, refused = MODELS[name](), 0
    inputs = (tokens(),) if name == "tiny" else (X,)
    for settings in SETTINGS:
        asked = {"rank": 2, **settings}
        if "example_inputs" in asked:
            asked["example_inputs"] = inputs
        error = refusal(model, asked)
        if error is not None:
            refused += 1
            assert bool(error.advice) == ("What works for this model: " in str(error))
            if error.advice:
                sites = noble_fx.transform(model, dry_run=True, **{**asked, **error.advice})
                assert any(site.selected for site in sites), f"{asked}: {error}"
    assert refused >= 3


def advice(model, settings, inputs=None):
    with pytest.raises((ConfigError, CaptureError)) as caught:
        noble_fx.transform(model, dry_run=True, example_inputs=inputs, **{"rank": 2, **settings})
    return caught.value


def test_another_capture_where_it_holds_the_model():
    error = advice(Decides(), {"capture": "export"}, (X,))
    assert error.advice == {
        "capture": "modules", "example_inputs": None, "example_kwargs": None, "dynamic_shapes": None
    }  # fmt: skip
    assert str(error).endswith("What works for this model: capture='modules', no example inputs (1 layer)")
    assert advice(BareAndDecides(), {"capture": "export"}, (X,)).advice == {}
    assert advice(Bare(), {}, (X,)).advice == {"capture": "export"}


def test_another_selection_where_one_finds_layers():
    assert advice(Tiny(), {"select": "ffn", "rank": 100}).advice == {"rank": 15}
    plain = nn.Sequential(nn.Linear(8, 8))
    assert advice(plain, {"select": "attention"}).advice == {"select": "all"}
    assert advice(plain, {"select": "attention", "rank": 8}).advice == {"select": "all", "rank": 7}
    assert advice(plain, {"exclude": "0"}).advice == {"exclude": None}


def test_where_nothing_works_it_ends():
    error = advice(Nothing(), {"select": "ffn"})
    assert error.advice == {}
    assert "Nothing else was found to work for this model (tried: select='all'; not capture='export'" in str(error)


def test_the_class_of_an_error_stays():
    for kind in (ConfigError, CaptureError):
        error = advised(kind("no").leading_nowhere(), Decides(), NobleConfig(rank=2, capture="export"), Examples())
        assert type(error) is kind
        assert error.advice == {"capture": "modules"}

"""The modules capture: the user's own object, and what it says of what it cannot reach."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from tests.models import Tiny, WithOptional, loud, tiny


@pytest.mark.parametrize("capture", ["auto", "modules"])
@pytest.mark.parametrize(
    "make", [tiny, WithOptional, lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))]
)
def test_the_very_object_comes_back_with_its_class(make, capture):
    model = make()
    kind, modules = type(model), list(model.modules())
    made = noble_fx.transform(model, rank=4, capture=capture)
    assert made is model
    assert type(made) is kind
    assert [module for module in made.modules() if module in modules] == modules
    assert next(iter(made.modules())) is model
    assert "capture: modules" in str(noble_fx.explain(made))


def test_nothing_of_the_users_python_runs():
    calls = []

    class Noted(Tiny):
        def forward(self, idx):
            calls.append("forward")  # an error would be taken for a model that cannot be traced
            return super().forward(idx)

    model = Noted()
    noble_fx.sites(model, rank=4)
    noble_fx.transform(model, rank=4, dry_run=True)
    noble_fx.transform(model, rank=4)
    assert calls == []


def test_attributes_that_forward_reads_and_buffers_stay_alive():
    class Scheduled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.alpha = nn.Linear(8, 8), 1.0
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x):
            self.steps.add_(1)
            return self.linear(x) * self.alpha

    model = Scheduled()
    noble_fx.sites(model, rank=4)
    loud(noble_fx.transform(model, rank=4))
    x = torch.randn(3, 8)
    assert model(x).abs().sum() > 0
    model.alpha = 0.0
    assert model(x).abs().sum() == 0
    assert model.steps == 2


class Bare(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(width, width))

    def forward(self, x):
        return x @ self.mix


def test_bare_parameters_alone_lead_to_the_export_capture():
    with pytest.raises(ConfigError, match=r"1 × a bare parameter.*capture='export' reaches it"):
        noble_fx.transform(Bare(), rank=4)
    made = noble_fx.transform(Bare(), rank=4, capture="export", example_inputs=(torch.randn(3, 16),))
    assert [site.weight for site in noble_fx.sites(made) if site.selected] == ["mix"]


def test_bare_parameters_beside_layers_are_no_excuse():
    class Both(Bare):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

    with pytest.raises(ConfigError) as error:
        noble_fx.transform(Both(), rank=4, select="nothing")
    assert "export" not in str(error.value)
    noble_fx.transform(Both(), rank=4)

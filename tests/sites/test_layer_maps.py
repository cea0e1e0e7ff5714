"""The layers that are linear maps: listed once, with what speaks against each."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from tests.sites.test_choose import chosen, reasons


def test_a_module_with_two_names_is_one_site():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.second = self.first

    (site,) = noble_fx.sites(Twice(), rank=4)
    assert (site.fqn, site.aliases) == ("first", ("second",))
    model = noble_fx.transform(Twice(), rank=4)
    assert model.first is model.second
    assert sum(1 for m in model.modules() if isinstance(m, noble_fx.NobleBranch)) == 1


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LSTM(16, 16), "recurrent"),
        (nn.GRUCell(16, 16), "recurrent"),
        (nn.Bilinear(16, 16, 16), "bilinear"),
        (nn.Conv2d(16, 16, 1, padding=1), "1x1 convolution with padding"),
        (torch.nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), "parametrized"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_listed_with_its_reason(module, reason):
    model = nn.ModuleDict({"odd": module, "fine": nn.Linear(16, 16)})
    assert reason in reasons(model)["odd"]
    assert chosen(model) == ["fine"]
    with pytest.raises(ConfigError, match="select names 'odd', which cannot carry a branch"):
        noble_fx.transform(model, rank=4, select=["odd"])


def test_a_quantized_layer_is_refused_and_listed():
    plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    assert reasons(model) == {"0": "quantized: its weight is packed", "2": "quantized: its weight is packed"}
    with pytest.raises(ConfigError, match=r"weight of '0' is quantized: its weight is packed; .*before quantizing it"):
        noble_fx.transform(model, rank=4)

"""A forward that takes arguments by `**kwargs`, as those of transformers do, is exported like any other."""

import inspect

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.captures.forward_signature import arguments_named
from noble_fx.runtime import OnnxModel
from tests.models import loud


class Rest(nn.Module):
    """Takes its mask, its pair and whether to double by `**kwargs`."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, scale=1.0, **rest):
        one, other = rest["pair"]
        y = self.linear(x) * scale * rest["mask"] + one + other
        return 2 * y if rest.get("double") else y


def arguments(rows: int = 3) -> dict:
    torch.manual_seed(rows)
    return {
        "double": True,
        "mask": torch.rand(rows, 8),
        "pair": (torch.randn(rows, 8), torch.randn(rows, 8)),
        "x": torch.randn(rows, 8),
    }


@pytest.mark.parametrize("capture", ["modules", "export"])
def test_both_exports_take_them(capture, tmp_path):
    examples = {"example_kwargs": arguments()} if capture == "export" else {}
    model = loud(noble_fx.transform(Rest().eval(), rank=2, select="all", capture=capture, **examples))
    torch.manual_seed(0)
    report = noble_fx.export_onnx(model, path=tmp_path / "m.onnx", kwargs=arguments())
    assert report.passes["join_up"] == 1
    assert report.largest_error < 1e-5
    assert len(report.checked) > 2  # the number of rows is dynamic
    given = arguments(6)
    one, other = given["pair"]
    named = {name: given[name] for name in ("mask", "x")}
    pair = dict(zip([n for n in report.inputs if n not in named], (one, other), strict=True))
    torch.testing.assert_close(OnnxModel(report.path)(**named, **pair), model(**given), rtol=1e-4, atol=1e-5)


def test_the_signature_is_the_models_own_again():
    model = Rest()
    before = inspect.signature(model.forward)
    with arguments_named(model, arguments()):
        assert list(inspect.signature(model.forward).parameters) == ["x", "scale", "double", "mask", "pair"]
        torch.testing.assert_close(model(**arguments()), Rest.forward(model, **arguments()))
    assert inspect.signature(model.forward) == before
    assert "forward" not in vars(model)


def test_a_forward_that_was_set_on_the_object_stays_there():
    model = Rest()
    model.forward = own = lambda x, **rest: x
    with arguments_named(model, ["x", "mask"]):
        assert list(inspect.signature(model.forward).parameters) == ["x", "mask"]
    assert model.forward is own


def test_what_has_names_is_left_alone():
    model = nn.Linear(2, 2)
    with arguments_named(model, ["input", "unknown"]):  # no **kwargs: the call's own error is the one to show
        assert "forward" not in vars(model)

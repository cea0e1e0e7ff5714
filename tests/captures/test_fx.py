"""The fx capture is faithful, or it declines and says why."""

import copy
import io
import random
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx import CaptureError
from noble_fx.captures.base import Declined
from noble_fx.captures.fx import CapturedModel, trace
from tests.models import WithOptional, loud, tiny, tokens, transformed


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)


class Optional(Base):
    def forward(self, x, mask=None):
        return self.linear(x)


class KeywordOnly(Base):
    def forward(self, x, *, scale):
        return self.linear(x) * scale


class Annotated(Base):
    def forward(self, x, n: int):
        return self.linear(x) * n


class FrozenDropout(Base):
    def forward(self, x):
        return F.dropout(self.linear(x), training=self.training)


class ByMode(Base):
    def forward(self, x):
        return self.linear(x) if self.training else x


class AsksType(Base):
    def forward(self, x):
        return self.linear(x) if isinstance(x, torch.Tensor) else x


class AsksIsTensor(Base):
    def forward(self, x):
        return self.linear(x) if torch.is_tensor(x) else x


class DataDependent(Base):
    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


class Constant(Base):
    def forward(self, x):
        return self.linear(x) + torch.randn(8)


class LayerDrop(Base):
    def forward(self, x):
        return self.linear(x) if random.random() < 2 else x


class Methods(Base):
    def forward(self, x):
        return self.linear(x)

    def generate(self, x):
        return self(x)


def hooked() -> nn.Module:
    model = tiny()
    model.blocks[0].register_forward_hook(lambda module, args, output: output)
    return model


DECLINED = [
    (Optional, "forward has the optional argument 'mask'"),
    (KeywordOnly, "forward takes scale"),
    (Annotated, "forward's argument 'n' is annotated"),
    (FrozenDropout, "differs between train and eval"),
    (ByMode, "differs between train and eval"),
    (AsksType, r"test_fx.py:\d+ asks for the type of a value"),
    (AsksIsTensor, "asks whether a value is a tensor"),
    (DataDependent, "symbolic tracing fails: TraceError"),
    (Constant, "draws a random number outside the graph"),
    (LayerDrop, "draws a random number in Python"),
    (Methods, "methods of its own .generate."),
    (hooked, "blocks.0 has hooks"),
]


@pytest.mark.parametrize(("make", "reason"), DECLINED, ids=[make.__name__ for make, _ in DECLINED])
def test_declines_with_the_reason(make, reason):
    model = make()
    model.train()
    with pytest.raises(Declined, match=reason):
        trace(model)
    assert model.training  # the modes are put back
    with pytest.raises(CaptureError, match=f"capture='fx' declines this model: .*{reason}.*use capture='modules'"):
        noble_fx.transform(model, rank=4, capture="fx")
    assert not any(isinstance(module, noble_fx.NobleBranch) for module in model.modules())
    result = noble_fx.transform(model, rank=4)  # auto falls back
    assert result is model
    assert re.search(reason, noble_fx.explain(result).settings["capture"])


def test_accepts_what_is_faithful_and_keeps_dropout_alive():
    model = tiny()
    captured = noble_fx.transform(model, rank=4, capture="fx")
    assert isinstance(captured, CapturedModel)
    captured.train()
    assert not torch.equal(captured(tokens()), captured(tokens()))
    captured.eval()
    assert torch.equal(captured(tokens()), captured(tokens()))


def test_a_layer_inside_a_leaf_or_never_called_declines():
    class Unused(Base):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x)

    with pytest.raises(CaptureError, match="spare is not called as a module"):
        noble_fx.transform(Unused(), rank=4, capture="fx")
    encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.TransformerEncoderLayer(8, 2, 16))
    with pytest.raises(CaptureError, match=r"0\.self_attn is inside 0, which the graph calls as a whole"):
        noble_fx.transform(encoder, rank=4, capture="fx")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.compile(tiny()), "already compiled; transform the plain model"),
        (lambda: torch.jit.script(nn.Linear(8, 8)), "ScriptModule"),
        (lambda: "model", "takes an nn.Module, not str"),
    ],
)
def test_what_is_no_plain_module_is_refused(make, message):
    with pytest.raises(CaptureError, match=message):
        noble_fx.transform(make(), rank=4)


def test_the_captured_model_is_the_models_own_tree():
    model = tiny()
    model.config = {"name": "tiny"}
    keys = list(model.state_dict())
    captured = noble_fx.transform(model, rank=4)
    assert [key for key in captured.state_dict() if ".noble." not in key] == keys
    assert captured.blocks[0] is model.blocks[0]
    assert captured.config == {"name": "tiny"}
    assert type(captured).__name__ == "Tiny"


@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_copies_are_whole_and_independent(way):
    captured = transformed("fx")
    before = captured(tokens())
    if way == "deepcopy":
        copied = copy.deepcopy(captured)
    else:
        file = io.BytesIO()
        torch.save(captured, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert torch.equal(copied(tokens()), before)
    assert noble_fx.sites(copied) == noble_fx.sites(captured)
    assert noble_fx.programs(copied)[0].history == noble_fx.programs(captured)[0].history
    with torch.no_grad():
        copied.blocks[0].q_proj.weight.add_(1)
    assert torch.equal(captured(tokens()), before)
    assert not torch.equal(copied(tokens()), before)


def test_the_graph_reads_parameters_live():
    captured = transformed("fx")
    state = {name: tensor.clone() * 0.5 for name, tensor in captured.state_dict().items()}
    captured.load_state_dict(state, assign=True)
    other = transformed("modules")
    other.load_state_dict(state)
    torch.testing.assert_close(captured(tokens()), other(tokens()))


def test_both_captures_compute_the_same():
    assert torch.equal(transformed("fx")(tokens()), transformed("modules")(tokens()))


def test_auto_keeps_modules_where_a_graph_would_not_do():
    model = loud(noble_fx.transform(WithOptional().eval(), rank=4))
    assert isinstance(model, WithOptional)
    torch.testing.assert_close(model(tokens(), scale=2.0), 2 * model(tokens()))

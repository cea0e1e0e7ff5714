"""A graph by symbolic tracing is faithful, or it is declined with the reason."""

import random
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx import CaptureError
from noble_fx.captures.base import Declined
from noble_fx.captures.tracing import trace
from tests.models import Base, tiny


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


class NoGrad(Base):
    def forward(self, x):
        with torch.no_grad():
            return self.linear(x)


class Autocast(Base):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(x)


class Counts(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps.add_(1)
        return self.linear(x) * self.steps


class ByValue(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("gate", torch.ones(()))

    def forward(self, x):
        return self.linear(x) if self.gate.item() > 0 else x


class Decorated(Base):
    @torch.no_grad()
    def stem(self, x):
        return self.linear(x)

    def forward(self, x):
        return self.stem(x)


class SetsGrad(Base):
    def forward(self, x):
        torch.set_grad_enabled(False)
        x = self.linear(x)
        torch.set_grad_enabled(True)
        return x


class AsksClass(Base):
    def forward(self, x):
        return self.linear(x) if type(x) is torch.Tensor else self.linear(x) * 2


class Prints(Base):
    def forward(self, x):
        print("forward")
        return self.linear(x)


class Checkpointed(Base):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.linear, x, use_reentrant=False)


OUTSIDE = torch.ones(())


class ChangesATensorOfTheUsers(Base):
    def forward(self, x):
        OUTSIDE.add_(1)
        return self.linear(x)


class ReadsAValueOfTheUsers(Base):
    def forward(self, x):
        return self.linear(x) * OUTSIDE.item()


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
    (AsksType, r"test_tracing.py:\d+ asks for the type of a value"),
    (AsksIsTensor, "asks whether a value is a tensor"),
    (DataDependent, "symbolic tracing fails: TraceError"),
    (Constant, "draws a random number outside the graph"),
    (LayerDrop, "draws a random number in Python"),
    (NoGrad, r"test_tracing.py:\d+ switches gradients on or off"),
    (Autocast, r"test_tracing.py:\d+ switches autocast on or off"),
    (Counts, "changes the buffer 'steps' while it is traced"),
    (ByValue, "symbolic tracing fails: RuntimeError: .*meta"),
    (hooked, "blocks.0 has hooks"),
    (Decorated, "switches gradients"),
    (SetsGrad, "switches gradients, autocast or the dtype"),
    (AsksClass, r"test_tracing.py:\d+ asks for the type of a value"),
    (Prints, r"test_tracing.py:\d+ prints"),
    (Checkpointed, r"test_tracing.py:\d+ computes activations anew in backward"),
    (ChangesATensorOfTheUsers, r"changes a tensor outside the graph \(aten.add_"),
    (ReadsAValueOfTheUsers, "reads the value of a tensor outside the graph"),
]


@pytest.mark.parametrize(("make", "reason"), DECLINED, ids=[make.__name__ for make, _ in DECLINED])
def test_declines_with_the_reason_and_changes_nothing(make, reason):
    model = make()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Declined, match=reason):
        trace(model)
    with pytest.raises(CaptureError, match=f"capture='fx' declines this model: .*{reason}.*capture='modules'"):
        noble_fx.transform(model, rank=4, capture="fx")
    assert all(module.training for module in model.modules())
    assert not any(isinstance(module, noble_fx.NobleBranch) for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert OUTSIDE == 1
    assert noble_fx.transform(model, rank=4) is model  # by default nothing is traced
    assert re.search(reason, noble_fx.explain(model).settings["graph"])


def test_the_model_is_as_it_was_after_tracing():
    model = tiny().train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    trace(model)
    assert [module.training for module in model.modules()] == modes


def test_a_profiler_goes_on_after_a_trace():
    import cProfile

    profiler = cProfile.Profile()
    profiler.enable()
    try:
        trace(nn.Sequential(nn.Linear(2, 2)))
        sorted([1, 2])
    finally:
        profiler.disable()
    assert any("sorted" in str(entry.code) for entry in profiler.getstats())

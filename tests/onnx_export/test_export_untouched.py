"""An export leaves the live model, its mode, gradients, hooks and buffers, random states and files as they were."""

import random
import threading

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ExportError
from noble_fx.runtime import OnnxModel
from tests.models import loud


class Eventful(nn.Module):
    """Changes a buffer, a parameter and a Python number at every call, normalises by batch, draws random numbers."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.gain, self.cache = nn.Parameter(torch.ones(8)), None

    def forward(self, x):
        self.calls.add_(1)
        with torch.no_grad():
            self.gain.mul_(2)
        y = self.norm(self.linear(x)) * self.gain + self.calls
        return y + 0 * torch.rand_like(y)


class Merges(nn.Linear):
    """A layer that merges what it learned into its weight in eval mode, as public LoRA layers do."""

    def train(self, mode=True):
        if self.training and not mode:
            self.weight.data += 1.0
        elif mode and not self.training:
            self.weight.data -= 1.0
        return super().train(mode)


def eventful():
    torch.manual_seed(0)
    model = loud(noble_fx.transform(Eventful(), rank=2, seed=0, select=["linear"])).train()
    model.linear.requires_grad_(False)
    model.calls.add_(3)
    model(torch.randn(4, 8)).sum().backward()
    model.linear.register_forward_hook(lambda module, args, out: out + 1)
    return model


def state(model):
    """All that an export might leave changed, by name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    tensors = {name: (t, t.data_ptr(), t.detach().clone()) for name, t in named}
    grads = {name: (p.requires_grad, p.grad, p._version) for name, p in model.named_parameters()}
    modules = {name: (type(m), m.training, dict(m._forward_hooks)) for name, m in model.named_modules()}
    return tensors, grads, modules, torch.get_rng_state(), random.getstate(), model.cache


def same(before, after):
    for (tensor, address, value), (tensor_now, address_now, value_now) in zip(
        before[0].values(), after[0].values(), strict=True
    ):
        assert tensor is tensor_now
        assert address == address_now
        assert torch.equal(value, value_now)
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])
    assert before[4:] == after[4:]


def test_the_live_model_is_as_it_was_and_the_file_starts_from_it(tmp_path):
    model, x = eventful(), torch.randn(4, 8)
    before = state(model)
    report = noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx")
    same(before, state(model))
    assert report.notes == (
        "every call of the model changes 'calls', and every run of the file starts from it",
        "every call of the model changes 'gain', and every run of the file starts from it",
    )
    assert "every call of the model changes 'calls'" in " ".join(str(report).split())
    torch.testing.assert_close(OnnxModel(tmp_path / "m.onnx")(x), model.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["capture", "verify"])
def test_an_interrupt_leaves_everything_as_it_was(stage, tmp_path):
    model, x, path = eventful(), torch.randn(4, 8), tmp_path / "m.onnx"
    path.write_text("mine")
    before = state(model)

    def interrupt(name):
        if name == stage:
            torch.rand(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noble_fx.export_onnx(model, (x,), path, overwrite=True, progress=interrupt)
    same(before, state(model))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_text() == "mine"


def test_a_layer_that_merges_weights_in_eval_mode_keeps_its_own(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(Merges(4, 4)), torch.randn(2, 4)
    before = model[0].weight.detach().clone()
    noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx")
    assert torch.equal(model[0].weight, before)
    assert model.training
    torch.testing.assert_close(OnnxModel(tmp_path / "m.onnx")(x), model.eval()(x))


def test_what_cannot_be_copied_is_named(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    model.lock = threading.Lock()
    with pytest.raises(ExportError, match="the model cannot be copied, and an export works on a copy: TypeError"):
        noble_fx.export_onnx(model, (torch.ones(2, 4),), tmp_path / "m.onnx")


def test_exports_in_two_threads_wait_for_one_another(tmp_path):
    x, reports = torch.randn(2, 4), {}

    def export(name):
        torch.manual_seed(0)
        reports[name] = noble_fx.export_onnx(nn.Linear(4, 4), (x,), tmp_path / name)

    threads = [threading.Thread(target=export, args=(f"{i}.onnx",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 2
    assert all(report.largest_error < 1e-6 for report in reports.values())


def test_numbers_and_texts_are_fixed_in_a_file_and_said_to_be(tmp_path):
    class Scale(nn.Module):
        def forward(self, x, scale=1.0, parts=()):
            return x * scale + sum(parts)

    kwargs = {"scale": 3.0, "parts": [torch.ones(2), 2]}
    report = noble_fx.export_onnx(Scale(), (torch.ones(2),), tmp_path / "m.onnx", kwargs=kwargs)
    assert report.notes == ("scale is fixed: 3.0", "parts[1] is fixed: 2")

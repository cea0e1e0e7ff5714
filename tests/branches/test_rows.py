"""What treats rows one by one is shown to, operator by operator; whatever is not shown to has a reason."""

import logging

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from noble_fx import PRESETS, NobleLinear
from noble_fx.branches.activations import build_activation
from noble_fx.branches.rows import MixesRows, check_rows

RANK = 4


def check(act: nn.Module) -> None:
    names, tensors = zip(*[*act.named_parameters(), *act.named_buffers(), ("", None)], strict=True)

    def forward(h, *given):
        return functional_call(act, dict(zip(names, given, strict=False)), (h,))

    with torch.no_grad():
        check_rows(forward, RANK, [tensor.detach() for tensor in tensors[:-1]], torch.float32)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


def in_place(h):
    h = h.clone()
    h[..., 0].mul_(2)
    h[..., 1:] = h[..., :1]
    return h


def outer(h):
    return (h[..., None] @ h[..., None, :]).sum(-1) + (h.unsqueeze(-1) * h.unsqueeze(-2)).amax(-1)


def grouped(h):
    h = h.view(-1, 2, 2).softmax(-1).flip(-1).reshape(*h.shape[:-1], 2, 2)
    return h.transpose(-1, -2).flatten(-2)


KEPT = {
    "layer norm": nn.Sequential(nn.LayerNorm(RANK), nn.RMSNorm(RANK)),
    "products": nn.Sequential(nn.Linear(RANK, 8), nn.ReLU(inplace=True), nn.Linear(8, RANK)),
    "gates": nn.Sequential(nn.Linear(RANK, 8), nn.GLU(), nn.PReLU(), nn.LogSigmoid(), nn.Hardswish()),
    "einsum": Function(lambda h: torch.einsum("...i,...j->...i", h, h)),
    "along channels": Function(lambda h: h.cumsum(-1) + h.sort(-1).values + h.gather(-1, h.argsort(-1))),
    "statistics": Function(lambda h: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True) * F.normalize(h, dim=-1)),
    "choices": Function(lambda h: torch.where(h >= h.topk(2, -1).values[..., -1:], h, h.masked_fill(h > 0, 0.0))),
    "look-up": Function(lambda h: h[..., torch.tensor([3, 2, 1, 0])] + h.new_zeros(h.shape)),
    "pieces": Function(lambda h: torch.cat([h[..., 2:], torch.stack([p * 2 for p in h[..., :2].unbind(-1)], -1)], -1)),
    "outer products": Function(outer),
    "groups of channels": Function(grouped),
    "in place": Function(in_place),
    "the other way round": Function(lambda h: torch.rsub(h, h.sin(), alpha=0.5) + (1 - h)),
    "nothing": Function(lambda h: h),
}


@pytest.mark.parametrize("name", KEPT)
def test_rows_are_kept(name):
    if name in ("outer products", "in place") and torch.__version__ < "2.13":
        with pytest.raises(MixesRows, match="something is decided"):  # which torch itself does there; so it is eager
            check(KEPT[name])
        return
    check(KEPT[name])


@pytest.mark.parametrize("name", ["cosnet_double", "swiglu_net", "leaky_relu_scale", "flip_gelu"])
def test_rows_are_kept_by_the_zoo_which_is_not_asked(name):
    check(build_activation(name, RANK, PRESETS["reference"]))


MIXED = {
    "mean": lambda h: h - h.mean(-2, keepdim=True),
    "mean for some values": lambda h: torch.where(h < 0, h - h.mean(-2, keepdim=True), h),
    "mean of all": lambda h: h - h.mean(),
    "running sum": lambda h: h.cumsum(-2),
    "softmax over rows": lambda h: h.softmax(-2),
    "sorted": lambda h: h.sort(-2).values,
    "sorted by a channel": lambda h: h.gather(-2, h[..., :1].argsort(-2).expand(h.shape)),
    "attention": lambda h: (h @ h.transpose(-1, -2)).softmax(-1) @ h,
    "covariance": lambda h: h @ (h.transpose(-1, -2) @ h),
    "transposed in memory": lambda h: h.transpose(-1, -2).reshape(h.shape),
    "flattened": lambda h: h.flatten().flip(0).view(h.shape),
    "place in the batch": lambda h: h * torch.arange(h.shape[-2]).unsqueeze(-1),
    "the first row": lambda h: h - h[..., :1, :],
    "how many rows": lambda h: h / h.shape[-2],
    "how many numbers": lambda h: h / h.numel(),
    "few rows": lambda h: h if h.shape[0] < 20 else 2 * h,
    "one row": lambda h: h if h.shape[-2] > 1 else 2 * h,
    "so many rows": lambda h: h + torch.ones(12, 1),
    "the first axis": lambda h: h.softmax(0),
    "the second axis": lambda h: h.softmax(1),
    "half of the second axis": lambda h: F.pad(h[:, :2], (0, RANK - h[:, :2].shape[-1])),
    "two axes": lambda h: h if len(h.shape) == 2 else 2 * h,
    "dim": lambda h: h if h.dim() == 2 else 2 * h,
    "ndim": lambda h: h if h.ndim == 2 else 2 * h,
    "gradients asked for": lambda h: 2 * h if h.requires_grad else h,
    "strides": lambda h: h if h.is_contiguous() else 2 * h,
    "no rows at the end": lambda h: h.sum(-2),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_reason_where_they_may_be_mixed(name):
    with pytest.raises(MixesRows):
        check(Function(MIXED[name]))


@pytest.mark.parametrize(
    "act", [nn.GroupNorm(2, RANK), nn.BatchNorm1d(RANK, track_running_stats=False)], ids=["groups", "batch"]
)
def test_an_operator_that_is_not_known_has_a_reason(act):
    with pytest.raises(MixesRows):
        check(act)


def test_the_reason_names_the_operator_and_the_question():
    with pytest.raises(MixesRows, match=r"mixes rows, as far as is known \(aten.mean.dim\)"):
        check(Function(MIXED["mean"]))
    with pytest.raises(MixesRows, match="asks a tensor for dim"):
        check(Function(MIXED["dim"]))
    with pytest.raises(MixesRows, match="cannot be traced for an unknown number of rows"):
        check(Function(MIXED["few rows"]))


@pytest.mark.parametrize("name", ["mean for some values", "few rows", "dim"])
def test_a_layer_with_such_a_sigma_runs_it_as_it_is(name):
    layer, x = NobleLinear.build(8, 8, RANK, act=lambda rank: Function(MIXED[name])), torch.randn(2, 21, 8)
    nn.init.normal_(layer.noble.up)
    assert layer.noble.unfused
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) + layer.noble(x))


def test_nothing_is_logged_about_what_is_refused(caplog):
    with pytest.raises(MixesRows):
        check(Function(MIXED["place in the batch"]))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

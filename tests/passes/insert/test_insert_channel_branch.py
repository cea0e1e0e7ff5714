"""The branch beside a 1×1 convolution sees the channels of each position that the convolution computes."""

import pytest
import torch
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import IN, OUT, Example, parameter, traced
from noble_fx.passes.insert.insert_channel_branch import insert_channel_branch
from noble_fx.passes.rule import run_passes

aten = torch.ops.aten


def along(m, x):
    """W and the branch along the channels of x [B, C, T]."""
    rows = x.transpose(1, 2)
    return (F.linear(rows, m.w[..., 0]) + m.noble.w(rows)).transpose(1, 2)


ONE_AXIS = Example(
    before=lambda m, x: aten.conv1d.default(x, m.w),
    after=lambda m, x: aten.conv1d.default(x, m.w) + m.noble.w(x.movedim(-2, -1)).movedim(-1, -2),
    truth=along,
    model=parameter(OUT, IN, 1),
    inputs=((2, IN, 4),),
)


def strided(stride, by_name=False):
    def before(m, x):
        return aten.conv1d.default(x, m.w, stride=[stride]) if by_name else aten.conv1d.default(x, m.w, None, [stride])

    def after(m, x):
        taken = x[..., :: stride or 1]
        return before(m, x) + m.noble.w(taken.movedim(-2, -1)).movedim(-1, -2)

    model, inputs = parameter(OUT, IN, 1), ((2, IN, 7),)
    return Example(before, after, lambda m, x: along(m, x[..., ::stride]), model, inputs)


@pytest.mark.parametrize("example", [insert_channel_branch.example, ONE_AXIS, strided(2), strided(3, by_name=True)])
def test_rewrite(example):
    check_rewrite(insert_channel_branch, example)


def test_one_stride_for_both_axes():
    torch.manual_seed(0)
    model, x = parameter(OUT, IN, 1, 1)(), torch.randn(2, IN, 5, 5)
    graph_module = traced(lambda m, x: aten.conv2d.default(x, m.w, None, [2]), model)
    run_passes(graph_module, [insert_channel_branch])
    taken = x[..., ::2, ::2].movedim(1, -1)
    expected = F.conv2d(x, model.w, stride=2) + model.noble["w"](taken).movedim(-1, 1)
    torch.testing.assert_close(graph_module(x), expected)


@pytest.mark.parametrize(
    ("shape", "function", "reason"),
    [
        ((OUT, IN, 3, 3), lambda m, x: aten.conv2d.default(x, m.w), "a convolution over 3 × 3 positions, not 1 × 1"),
        (
            (OUT, IN, 1, 1),
            lambda m, x: aten.conv2d.default(x, m.w, None, [1, 1], [1, 1]),
            "a 1x1 convolution with groups or padding",
        ),
        (
            (OUT, IN, 1, 1),
            lambda m, x: aten.conv2d.default(x, m.w, padding=[0, 1]),
            "a 1x1 convolution with groups or padding",
        ),
        (
            (OUT, IN // 2, 1, 1),
            lambda m, x: aten.conv2d.default(x, m.w, groups=2),
            "a 1x1 convolution with groups or padding",
        ),
        (
            (OUT, IN, 1, 1),
            lambda m, x: aten.conv2d.default(x, aten.slice.Tensor(m.w, 0, 0, 3)),
            "a convolution with a part of the weight",
        ),
        ((OUT, IN, 1, 1), lambda m, x: aten.conv2d.default(x, x), "not selected"),
    ],
)
def test_refusal(shape, function, reason):
    (step,) = run_passes(traced(function, parameter(*shape)()), [insert_channel_branch])
    assert step.skipped == reason

"""W and U become one matrix, where nothing else reads them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx.exporting import own_export
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import IN, OUT, RANK, Example, branch_operands, layer, layers, traced
from noble_fx.passes.inference.join_down import STORED_TWICE
from noble_fx.passes.inference.join_up import join_up
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.passes.rule import run_passes
from noble_fx.schema import JOINED_UP, LINEAR
from tests.models import loud

aten = torch.ops.aten


def joined(m, x, weight, bias):
    down, down_bias, _, act, key = branch_operands(m.noble)
    return JOINED_UP(x, weight, bias, down, down_bias, act, key)


NO_BIAS = Example(
    before=lambda m, x: LINEAR(x, m.weight, None, *branch_operands(m.noble)),
    after=lambda m, x: joined(m, x, m.joined_weight, None),
    truth=lambda m, x: F.linear(x, m.weight) + m.noble(x),
)
IDENTITY = Example(
    before=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
    after=lambda m, x: joined(m, x, m.joined_weight, m.bias),
    truth=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
    model=lambda: layer("identity"),
)


def stored_transposed() -> nn.Module:
    model = layer()
    model.weight = nn.Parameter(model.weight.detach().t().contiguous())
    return model


TRANSPOSED = Example(
    before=lambda m, x: LINEAR(x, aten.t.default(m.weight), m.bias, *branch_operands(m.noble)),
    after=lambda m, x: joined(m, x, m.joined_weight, m.bias),
    truth=lambda m, x: F.linear(x, m.weight.t(), m.bias) + m.noble(x),
    model=stored_transposed,
)


@pytest.mark.parametrize("example", [join_up.example, NO_BIAS, IDENTITY, TRANSPOSED])
def test_rewrite(example):
    check_rewrite(join_up, example)


def tied() -> nn.Module:
    model = layers()
    model.k.weight = model.q.weight
    return model


def tied_up() -> nn.Module:
    model = layers()
    model.k.noble.up = model.q.noble.up
    return model


def mixed() -> nn.Module:
    model = layer()
    model.noble.up = nn.Parameter(model.noble.up.detach().bfloat16())
    return model


def both(m, x):
    return tuple(LINEAR(x, part.weight, part.bias, *branch_operands(part.noble)) for part in (m.q, m.k))


@pytest.mark.parametrize(
    ("build", "function", "reason"),
    [
        (tied, both, STORED_TWICE),
        (tied_up, both, STORED_TWICE),
        (
            layer,
            lambda m, x: LINEAR(x, m.weight * x.mean(), m.bias, *branch_operands(m.noble)),
            "its matrices are computed in the graph, not constant",
        ),
        (
            mixed,
            lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
            "W is torch.float32 and U torch.bfloat16",
        ),
    ],
    ids=["tied W", "tied U", "computed", "of two dtypes"],
)
def test_refusal(build, function, reason):
    graph_module = traced(function, build())
    before = str(graph_module.graph)
    assert {step.skipped for step in run_passes(graph_module, [join_up])} == {reason}
    assert str(graph_module.graph) == before


@pytest.mark.parametrize(
    ("width", "dtype", "count"), [(1020, "float32", 1), (1021, "float32", 0), (1021, "float16", 1)]
)
def test_rows_of_four_kibibytes_are_not_made(width, dtype, count):
    model = nn.Sequential(nn.Linear(width, 4))
    model = loud(noble_fx.transform(model, rank=3, capture="modules", seed=0)).to(getattr(torch, dtype))
    x = torch.ones(2, width, dtype=getattr(torch, dtype))
    with own_export():
        graph_module = torch.export.export(model.requires_grad_(False), (x,)).module(check_guards=False)
    (step,) = run_passes(graph_module, [join_up])
    assert sum(node.target is JOINED_UP for node in graph_module.graph.nodes) == count
    assert count or step.skipped.startswith("rows of 1024 numbers, a multiple of 4 KiB")


def test_the_old_matrices_can_be_removed():
    graph_module = traced(lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)), layer())
    steps = run_passes(graph_module, [join_up, remove_dead])
    assert [step.rule for step in steps if not step.skipped] == ["join_up", "remove_dead"]
    names = dict(graph_module.named_parameters())
    assert names["joined_weight"].shape == (OUT, IN + RANK)
    assert not {"weight", "noble.up"} & set(names)
    assert {"bias", "noble.down"} <= set(names)

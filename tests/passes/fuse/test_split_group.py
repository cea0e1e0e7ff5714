"""A group taken apart is the sites that it was made of."""

import pytest
import torch

from noble_fx.passes.fuse.share_input import share_input
from noble_fx.passes.fuse.split_group import split_group
from noble_fx.passes.rule import run_passes
from noble_fx.schema import LINEAR, LINEAR_GROUP
from tests.passes.fuse.test_share_input import attention, calls


@pytest.mark.parametrize("settings", [{}, {"preset": "reference"}])
def test_there_and_back(settings):
    model, x = attention(**settings), torch.randn(3, 8)
    before, graph = model(x), model.graph
    assert LINEAR_GROUP in calls(graph)
    history = run_passes(model, [split_group])
    assert {(step.rule, step.skipped) for step in history} == {("split_group", "")}
    assert calls(graph).count(LINEAR) == 4
    assert LINEAR_GROUP not in calls(graph)
    torch.testing.assert_close(model(x), before)
    run_passes(model, [share_input])
    assert calls(graph).count(LINEAR_GROUP) == 1
    torch.testing.assert_close(model(x), before)


def test_once_apart_there_is_nothing_to_do():
    model = attention()
    run_passes(model, [split_group])
    assert run_passes(model, [split_group]) == []

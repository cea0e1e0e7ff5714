"""A graph's passes and operators, also of a graph that is large."""

import time

import pytest
import torch
from torch import fx, nn

from noble_fx.explaining.graphs import PassAccount, graph_account
from noble_fx.passes.history import History, Program, Step
from tests.samples import long


def chain(length: int) -> fx.GraphModule:
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(length):
        node = graph.call_function(torch.relu, (node,))
    graph.output(node)
    return fx.GraphModule(nn.Module(), graph)


def test_steps_are_counted_by_pass_and_reason():
    done, left = Step("insert_branch", "a", "b", "c"), Step("mine", "a", "b", "", "not today")
    account = graph_account(Program(chain(2), (), History([done, left, done, left], {"relu": 7}), "eval"))
    assert account.passes[0].rewrites == 2
    assert account.passes[1] == PassAccount("mine", "", 0, {"not today": 2})
    assert account.passes[1].hits == 2
    assert (account.mode, account.nodes) == ("eval", 4)
    assert (account.operators, account.operators_before) == ({"relu": 2}, {"relu": 7})


def test_a_history_of_steps_alone_knows_no_operators_before():
    assert graph_account(Program(chain(1), (), ())).operators_before is None


@pytest.mark.parametrize("size", [5_000, long(100_000)])
def test_a_large_graph_takes_no_more_than_its_size(size):
    program = Program(chain(size), (), History(Step("p", str(i), "", "", "no") for i in range(size)))
    start = time.perf_counter()
    account = graph_account(program)
    assert time.perf_counter() - start < size / 10_000 + 2
    assert account.operators == {"relu": size}
    assert account.passes[0].skips == {"no": size}

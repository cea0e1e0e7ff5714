"""torch.compile(backend="noble_fx"): the same results, breaks and recompilations included, and what is remembered."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import noble_fx
from noble_fx.runtime import dynamo_backend
from tests.models import Tiny, loud, tokens, transformed

AOT = {"then": "aot_eager"}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("capture", ["modules", "fx"])
def test_training_step_equals_eager(capture):
    model = transformed(capture)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="noble_fx", options=AOT, fullgraph=True)
    for one in (compiled, twin):
        one(tokens()).square().mean().backward()
    torch.testing.assert_close(compiled(tokens()), twin(tokens()))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_inductor_trains_and_keys_its_cache_with_the_passes():
    torch.manual_seed(0)
    model = loud(noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), rank=2, select="all", capture="modules"))
    twin, x = copy.deepcopy(model), torch.randn(3, 8)
    compiled = torch.compile(model, backend="noble_fx")
    for one in (compiled, twin):
        one(x).square().mean().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_cache_key_depends_on_the_pass_list_and_the_activation(monkeypatch):
    keys = set()
    for act in ("cosnet", "gelu"):
        model = noble_fx.transform(Tiny(), rank=4, act=act, capture="modules")
        torch.compile(model, backend="noble_fx", options=AOT)(tokens())
        keys.add(dynamo_backend.cache_key(noble_fx.programs(model)[0].graph_module))
    monkeypatch.setitem(dynamo_backend.PIPELINES, "compiled", dynamo_backend.PIPELINES["base"])
    keys.add(dynamo_backend.cache_key(noble_fx.programs(model)[0].graph_module))
    assert len(keys) == 3


def test_inductors_pass_carries_the_key_and_runs_the_users_own():
    seen = []
    made = dynamo_backend._cache_key_pass("key", seen.append)
    made("graph")
    assert seen == ["graph"]
    assert made.uuid() == ("key", None)
    assert dynamo_backend._cache_key_pass("key", None).uuid() == "key"


class Broken(Tiny):
    """A graph break between the blocks."""

    def forward(self, idx: Tensor) -> Tensor:
        x = self.blocks[0](self.embed(idx))
        torch._dynamo.graph_break()
        return self.head(self.blocks[1](x))


def test_graph_breaks_give_several_programs_with_their_own_sites():
    torch.manual_seed(0)
    model = loud(noble_fx.transform(Broken().eval(), rank=4, capture="modules", seed=0))
    compiled = torch.compile(model, backend="noble_fx", options=AOT)
    torch.testing.assert_close(compiled(tokens()), model(tokens()))
    found = [{site.fqn.split(".")[1] for site in program.sites} for program in noble_fx.programs(model)]
    assert found == [{"0"}, {"1"}]
    assert all(program.mode == "compiled" for program in noble_fx.programs(compiled))


def test_dynamic_sizes_and_recompilations():
    model = transformed()
    compiled = torch.compile(model, backend="noble_fx", options=AOT)
    for shape in ((2, 5), (3, 7), (4, 9)):
        torch.testing.assert_close(compiled(tokens(*shape)), model(tokens(*shape)))
    assert len(noble_fx.programs(model)) == 2  # fixed sizes, then symbolic ones


def test_explain_counts_the_sites_of_compiled_graphs():
    model = transformed()
    torch.compile(model, backend="noble_fx", options=AOT)(tokens())
    (program,) = noble_fx.explain(model).programs
    assert len(program.sites) == 12
    assert str(program).count("torch.ops.noble_fx.linear") == 12


def test_a_model_without_branches_goes_through():
    model = Tiny().eval()
    dynamo_backend.register()
    torch.testing.assert_close(torch.compile(model, backend="noble_fx", options=AOT)(tokens()), model(tokens()))
    assert noble_fx.programs(model) == ()


def test_a_backend_may_be_given_as_a_function():
    seen = []

    def mine(graph_module, inputs):
        seen.append(graph_module)
        return graph_module.forward

    model = transformed()
    torch.compile(model, backend="noble_fx", options={"then": mine})(tokens())
    assert len(seen) == 1

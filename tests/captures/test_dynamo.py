"""torch.compile(backend="noble_fx"): the same results, breaks and recompilations included, and what is remembered."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.utils.checkpoint import checkpoint

import noble_fx
from noble_fx.captures import dynamo
from tests.models import Tiny, compiled_programs, loud, tiny, tokens, transformed

AOT = {"then": "aot_eager"}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("capture", ["modules", "fx"])
def test_training_step_equals_eager(capture):
    model = loud(noble_fx.transform(tiny(layers=1), rank=4, capture=capture))
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="noble_fx", options=AOT, fullgraph=True)
    for one in (compiled, twin):
        one(tokens()).square().mean().backward()
    torch.testing.assert_close(compiled(tokens()), twin(tokens()))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_inductor_trains():
    torch.manual_seed(0)
    model = loud(noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), rank=2, select="all", capture="modules"))
    twin, x = copy.deepcopy(model), torch.randn(3, 8)
    compiled = torch.compile(model, backend="noble_fx")
    for one in (compiled, twin):
        one(x).square().mean().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


# --- Inductor's cache ------------------------------------------------------------------------------------------------


def cache_outcome(model: nn.Module) -> str:
    """What Inductor's own cache of graphs says when it is asked for this model."""
    torch._dynamo.reset()
    counters["inductor"].clear()
    with torch.no_grad(), torch._functorch.config.patch(enable_autograd_cache=False):
        torch.compile(model, backend="noble_fx")(torch.ones(3, 8))
    found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}
    (outcome,) = (name for name, count in found.items() if count)
    return outcome


def one_layer(**settings) -> nn.Module:
    return noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), rank=2, capture="modules", **{"seed": 0, **settings})


def test_inductors_cache_knows_the_config_and_the_pass_list(monkeypatch):
    with fresh_cache():
        assert cache_outcome(one_layer()) == "miss"
        assert cache_outcome(one_layer()) == "hit"
        assert cache_outcome(one_layer(preset="reference")) == "miss"
        assert cache_outcome(one_layer(seed=1)) == "miss"
        assert cache_outcome(copy.deepcopy(one_layer(seed=1))) == "hit"
        monkeypatch.setitem(dynamo.PIPELINES, "compiled", ())
        assert cache_outcome(one_layer()) == "miss"
        assert cache_outcome(one_layer()) == "hit"
        monkeypatch.setattr(dynamo.own_code, "digest", lambda: "another version of this package")
        assert cache_outcome(one_layer()) == "miss"


def test_the_configs_are_those_of_the_branches_in_the_graph():
    one, other = one_layer(seed=0), one_layer(seed=1)
    graph = fx.symbolic_trace(nn.Identity())
    keys = [dynamo.cache_key(graph, [model[0].noble.down]) for model in (one, other, copy.deepcopy(one))]
    assert keys[0] == keys[2] != keys[1]


def test_a_pass_of_the_users_own_runs_and_decides_on_caching():
    seen = []
    made = dynamo._cache_key_pass("key", seen.append)
    made("graph")
    assert seen == ["graph"]
    assert made.uuid() is None  # nobody can tell when it changes, so Inductor must not cache
    assert dynamo._cache_key_pass("key", None).uuid() == "key"
    assert dynamo._cache_key_pass("key", dynamo._cache_key_pass("theirs", None)).uuid() == (
        "key",
        "theirs",
    )


# --- what is remembered ----------------------------------------------------------------------------------------------


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
    found = [{site.fqn.split(".")[1] for site in program.sites} for program in compiled_programs(model)]
    assert found == [{"0"}, {"1"}]
    assert all(program.mode == "compiled" for program in noble_fx.programs(compiled))


def test_dynamic_sizes_and_recompilations():
    model = loud(noble_fx.transform(tiny(layers=1), rank=4))
    compiled = torch.compile(model, backend="noble_fx", options=AOT)
    for shape in ((2, 5), (3, 7), (4, 9)):
        torch.testing.assert_close(compiled(tokens(*shape)), model(tokens(*shape)))
    assert len(compiled_programs(model)) == 2  # fixed sizes, then symbolic ones


def test_explain_counts_the_sites_of_compiled_graphs():
    model = transformed()
    torch.compile(model, backend="noble_fx", options=AOT)(tokens())
    looking, program = noble_fx.explain(model).programs
    assert (looking.mode, program.mode) == ("looking", "compiled")
    assert len(program.sites) == 12
    assert program.groups == (2, 2)  # q and v of each block; k has no bias
    assert str(program).count("torch.ops.noble_fx.linear.") == 8


def test_blocks_that_share_a_graph_are_listed_each():
    model, seen = transformed(), []

    def mine(graph_module, inputs):
        seen.append(graph_module)
        return graph_module.forward

    for block in model.blocks:
        block.compile(backend="noble_fx", options={"then": mine})
    expected = transformed()(tokens())
    for _ in range(3):
        torch.testing.assert_close(model(tokens()), expected)
    assert len(seen) == 1
    programs = compiled_programs(model)
    assert [{site.fqn.split(".")[1] for site in program.sites} for program in programs] == [{"0"}, {"1"}]
    assert [len(program.sites) for program in programs] == [6, 6]
    assert [program.shared for program in programs] == [((f"blocks.{i}.q_proj", f"blocks.{i}.v_proj"),) for i in "01"]


class Checkpointed(Tiny):
    """Each block under activation checkpointing: Dynamo puts it into a graph of its own."""

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def test_checkpointed_blocks_are_grouped_and_listed():
    torch.manual_seed(0)
    model = loud(noble_fx.transform(Checkpointed().eval(), rank=4, capture="modules", seed=0))
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="noble_fx", options=AOT, fullgraph=True)
    for one in (compiled, twin):
        one(tokens()).square().mean().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    (program,) = compiled_programs(model)
    assert len(program.sites) == 12
    assert program.groups == (2, 2)
    assert program.shared == tuple((f"blocks.{i}.q_proj", f"blocks.{i}.v_proj") for i in range(2))


def test_a_model_without_branches_goes_through():
    model = Tiny().eval()
    dynamo.register()
    torch.testing.assert_close(torch.compile(model, backend="noble_fx", options=AOT)(tokens()), model(tokens()))
    assert compiled_programs(model) == []


def test_a_backend_may_be_given_as_a_function():
    seen = []

    def mine(graph_module, inputs):
        seen.append(graph_module)
        return graph_module.forward

    torch.compile(one_layer(), backend="noble_fx", options={"then": mine})(torch.ones(3, 8))
    assert len(seen) == 1

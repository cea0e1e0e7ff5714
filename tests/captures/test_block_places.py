"""Branches around blocks in graphs: what a captured model computes is what the user's modules compute."""

import copy
import pickle

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.captures.block_places import candidates, places_shown
from noble_fx.captures.tracing import trace
from noble_fx.config import NobleConfig
from noble_fx.schema import BLOCK_BRANCH
from tests.models import Base, Block, loud, tiny, tokens

EXAMPLES = {"fx": {}, "export": {"example_inputs": (tokens(),)}}
SETTINGS = {"rank": 4, "scope": "block", "seed": 0, "exclude": r"\.1$"}


def both(capture):
    """A captured model, and the same one that runs its modules."""
    model = tiny(layers=3).double()
    modules = loud(noble_fx.transform(copy.deepcopy(model), **SETTINGS))
    captured = loud(noble_fx.transform(model, **SETTINGS, capture=capture, **EXAMPLES[capture]))
    return captured.eval(), modules.eval()


def graphs(model):
    return [program.graph_module.graph for program in noble_fx.programs(model)]


def named(graph):
    return [str(node.target) for node in graph.nodes if ".noble" in str(node.target)]


@pytest.mark.parametrize("capture", EXAMPLES)
def test_it_computes_what_the_modules_do(capture):
    captured, modules = both(capture)
    torch.testing.assert_close(captured(tokens()), modules(tokens()))
    torch.testing.assert_close(captured(tokens(3, 7)), modules(tokens(3, 7)))
    for model in (captured, modules):
        model(tokens()).square().sum().backward()
    for (name, ours), theirs in zip(captured.named_parameters(), modules.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


@pytest.mark.parametrize("capture", EXAMPLES)
def test_no_place_is_left_and_the_branches_are_calls(capture):
    captured, _ = both(capture)
    for graph in graphs(captured):
        assert BLOCK_BRANCH not in [node.target for node in graph.nodes]
        assert named(graph) == ["blocks.0.noble", "blocks.2.noble"]


@pytest.mark.parametrize("capture", EXAMPLES)
def test_off_and_out_it_is_the_base_model(capture):
    captured, modules = both(capture)
    noble_fx.remove(modules)
    with noble_fx.disabled(captured):
        torch.testing.assert_close(captured(tokens()), modules(tokens()))
        assert not any(named(graph) or BLOCK_BRANCH in {n.target for n in graph.nodes} for graph in graphs(captured))
    assert torch.equal(noble_fx.remove(captured)(tokens()), modules(tokens()))


@pytest.mark.parametrize("capture", EXAMPLES)
def test_it_is_copied_folded_pickled_and_watched(capture):
    captured, modules = both(capture)
    expected = modules(tokens())
    for other in (copy.deepcopy(captured), noble_fx.fold(captured), pickle.loads(pickle.dumps(captured))):
        torch.testing.assert_close(other(tokens()), expected)
    shares = []
    for model in (captured, modules):
        with noble_fx.watching(model) as seen:
            model(tokens())
        shares.append(seen.shares)
    assert shares[0].keys() == {"blocks.0", "blocks.2"}
    assert shares[0] == pytest.approx(shares[1])


def test_a_graph_to_look_at_has_the_branches():
    _, modules = both("fx")
    (program,) = noble_fx.programs(modules)
    assert program.mode == "looking"
    assert named(program.graph_module.graph) == ["blocks.0.noble", "blocks.2.noble"]


def test_the_classes_come_back_whatever_is_raised():
    model = tiny()
    blocks = candidates(model, NobleConfig(scope="block"))
    assert blocks == {"blocks.0": 16, "blocks.1": 16}
    assert candidates(model, NobleConfig()) == {}
    with places_shown(model, blocks):
        assert type(model.blocks[0]) is not Block
        assert [n.args[1] for n in trace(model).nodes if n.target is BLOCK_BRANCH] == ["blocks.0", "blocks.1"]
    assert type(model.blocks[0]) is Block
    with pytest.raises(AttributeError), places_shown(model, blocks):
        model.nothing()
    assert type(model.blocks[0]) is Block


class Skipping(Base):
    """A model that never runs its second block."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(8), Block(8)])

    def forward(self, x):
        return self.blocks[0](x)


@pytest.mark.parametrize("capture", EXAMPLES)
def test_a_block_that_is_not_run_declines(capture):
    model = Skipping()
    examples = {"example_inputs": (torch.randn(2, 3, 8),)} if capture == "export" else {}
    before = dict(model.named_modules())
    with pytest.raises(noble_fx.CaptureError, match=r"blocks\.1 is not (run in train mode|called as a module)"):
        noble_fx.transform(model, rank=2, scope="block", capture=capture, **examples)
    assert dict(model.named_modules()) == before
    assert type(model.blocks[1]) is Block

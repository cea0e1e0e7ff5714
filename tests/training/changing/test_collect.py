import pytest
import torch

from noble_fx import ConfigError
from noble_fx.training.changing.collect import ROWS, collected
from noble_fx.transform import named_branches
from tests.models import tokens, transformed


@pytest.mark.parametrize("batch", [tokens(), (tokens(),), {"idx": tokens()}, [tokens(1), tokens(1)]])
def test_what_reaches_the_bottlenecks(batch):
    model = transformed().train()
    branches = named_branches(model)
    generator = torch.random.get_rng_state()
    rows = collected(model, list(branches.values()), batch)
    assert {tuple(found.shape) for found in rows.values()} == {(10, 4)}
    assert len(rows) == len(branches)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), generator)
    first = branches["blocks.0.fc1"]
    seen = []
    handle = first.register_forward_pre_hook(lambda _, args: seen.append(first.bottleneck(args[0])))
    model.eval()(tokens())
    handle.remove()
    if not isinstance(batch, list):
        assert torch.allclose(rows[id(first)], seen[0].reshape(-1, 4), atol=1e-6)


def test_many_rows_are_thinned_out_and_what_was_not_reached_is_not_there():
    model = transformed()
    branch = model.blocks[0].fc1.noble
    rows = collected(branch, [branch], [torch.ones(5000, 16)] * 20)
    assert 1000 <= len(rows[id(branch)]) <= ROWS
    assert collected(branch, [model.blocks[1].fc1.noble], torch.ones(3, 16)) == {}


def test_what_is_no_batch():
    with pytest.raises(ConfigError, match="must be a tensor, a tuple"):
        collected(transformed(), [], 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"inputs=\[\] holds no batch"),
        (tokens()[:0], "inputs hold no row"),
        ([{"idx": tokens()[:0]}, ()], "inputs hold no row"),
        (iter([tokens()]), r"of a loader give list\(loader\)"),
        (torch.utils.data.DataLoader(tokens()), r"of a loader give list\(loader\)"),
        ([tokens(), {"ids": tokens()}], r"cannot run on inputs\[1\]: TypeError: .*'ids'"),
        (torch.full((1, 5), 10**6), "cannot run on inputs: IndexError"),
    ],
)
def test_inputs_that_say_nothing_or_do_not_fit(inputs, message):
    model = transformed().train()
    with pytest.raises(ConfigError, match=message):
        collected(model, [model.blocks[0].fc1.noble], inputs)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())

"""Every call of a site is told, whatever runs it, and afterwards all is as it was."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.looking.observed import observed
from tests.models import loud, tiny, tokens, transformed

EXAMPLES = {"modules": {}, "fx": {}, "export": {"example_inputs": (tokens(),)}}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model, batch=None):
    """Gradients of one step with dropout from one seed."""
    model.zero_grad()
    torch.manual_seed(3)
    model(tokens() if batch is None else batch).square().mean().backward()
    return gradients(model)


def told_in(model, run):
    calls = []
    with observed(model, calls.append):
        result = run(model)
    return calls, result


def attributes(model):
    return {name: list(vars(module).items()) for name, module in model.named_modules()}


@pytest.mark.parametrize("capture", EXAMPLES)
def test_every_capture_tells_of_the_same_sites_and_the_step_is_the_same(capture):
    model = transformed(capture, **EXAMPLES[capture]).train()
    expected, before = step(model), attributes(model)
    calls, got = told_in(model, step)
    assert {call.site for call in calls} == {site.fqn for site in noble_fx.sites(model) if site.selected}
    assert len(calls) == 12
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert attributes(model) == before
    assert all(torch.equal(value, expected[name]) for name, value in step(model).items())


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_what_a_graph_takes_for_granted_is_looked_at_there_too(capture):
    model = loud(noble_fx.transform(tiny(), rank=4, capture=capture, **EXAMPLES[capture]))
    model.blocks[0].fc1.register_forward_hook(lambda *_: None)
    with observed(model, lambda call: None), pytest.raises(noble_fx.CaptureError, match="other hooks"):
        model(tokens())


class Checkpointed(nn.Module):
    def __init__(self, inner, **settings):
        super().__init__()
        self.inner, self.settings = inner, settings

    def forward(self, x):
        return checkpoint(self.inner, x, **self.settings)


def keep_products(ctx, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if "mm" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = functools.partial(create_selective_checkpoint_contexts, keep_products)


@pytest.mark.parametrize(
    "settings",
    [{"use_reentrant": True}, {"use_reentrant": False}, {"use_reentrant": False, "context_fn": SELECTIVE}],
    ids=["reentrant", "plain", "selective"],
)
def test_a_checkpoint_is_told_of_once_and_computes_the_same(settings):
    model = transformed("modules").train()
    for i, block in enumerate(model.blocks):
        model.blocks[i] = Checkpointed(block, **settings)
    expected = step(model)
    calls, got = told_in(model, step)
    assert len(calls) == 12
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_compiled_model_runs_eagerly_and_is_not_compiled_again():
    torch._dynamo.reset()
    model = loud(noble_fx.transform(tiny(layers=1), rank=4, seed=0))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected, before = compiled(tokens()), dict(counters["frames"])
    calls, inside = told_in(compiled, lambda model: model(tokens()))
    assert len(calls) == 6
    torch.testing.assert_close(inside, expected)
    assert torch.equal(compiled(tokens()), expected)
    assert dict(counters["frames"]) == before


def test_an_export_inside_is_what_it_is_outside():
    model = transformed("modules")
    with observed(model, lambda call: pytest.fail("told")):
        program = torch.export.export(model, (tokens(),), strict=False)
    torch.testing.assert_close(program.module()(tokens()), model(tokens()))


def test_a_model_that_is_watched_already_and_data_parallel_are_refused():
    model = transformed("modules")
    with observed(model, lambda call: None):
        with pytest.raises(ConfigError, match="is being watched already"), observed(model, lambda call: None):
            pass
        assert model.blocks[0].fc1.forward.__class__.__name__ == "_Layer"  # the first one's
        with pytest.raises(ConfigError, match="copy it outside"):
            copy.deepcopy(model)
    parallel = torch.nn.DataParallel(model)
    with pytest.raises(ConfigError, match="DataParallel copies"), observed(parallel, lambda call: None):
        pass
    with pytest.raises(ConfigError, match="no branches"), observed(tiny(), lambda call: None):
        pass


def test_an_error_inside_leaves_nothing_behind():
    model = transformed("modules")
    before = attributes(model)
    with pytest.raises(KeyboardInterrupt), observed(model, lambda call: None):
        raise KeyboardInterrupt
    assert attributes(model) == before

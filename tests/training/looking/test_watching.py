"""The branch's share of its site's output."""

import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.looking.observer import Call
from noble_fx.training.looking.watching import Seen
from tests.models import tiny, tokens, transformed
from tests.one_rank import fsdp2, one_rank


def truth(model, *batches):
    """By a hook on each layer, in float64: √(Σ|branch(x)|² / Σ|y|²) of each and of all."""
    squares = {}

    def hook(name):
        def note(layer, args, y):
            added = layer.noble(args[0])
            branch, whole = squares.get(name, (0.0, 0.0))
            squares[name] = branch + added.square().sum().item(), whole + y.square().sum().item()

        return note

    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "noble")}
    hooks = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in hooks:
        handle.remove()
    total = math.sqrt(sum(b for b, _ in squares.values()) / sum(w for _, w in squares.values()))
    return {name: math.sqrt(b / w) for name, (b, w) in squares.items()}, total


def watched(model, *batches):
    with noble_fx.watching(model) as seen:
        for batch in batches:
            model(batch)
    return seen


def test_against_float64():
    shares, total = truth(transformed("modules").double(), tokens(), tokens(3))
    seen = watched(transformed("modules"), tokens(), tokens(3))
    assert seen.shares == pytest.approx(shares, rel=1e-5)
    assert seen.share == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast(dtype):
    shares, _ = truth(transformed("modules").double(), tokens())
    assert watched(transformed("modules").to(dtype), tokens()).shares == pytest.approx(shares, rel=0.05)
    with torch.autocast("cpu", dtype):
        assert watched(transformed("modules"), tokens()).shares == pytest.approx(shares, rel=0.05)


def test_outside_nothing_is_noted_and_no_gradient_is_added():
    model = transformed("modules")
    model(tokens()).square().mean().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with noble_fx.watching(model) as seen:
        model(tokens()).square().mean().backward()
    noted = dict(seen.shares)
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))
    model(tokens(7))
    assert seen.shares == noted


@pytest.mark.parametrize("wrap", [lambda model, mesh: DistributedDataParallel(model), fsdp2], ids=["DDP", "FSDP2"])
def test_on_many_ranks_names_and_numbers_are_the_same(wrap):
    expected = watched(transformed("modules"), tokens()).shares
    with one_rank() as mesh:
        assert watched(wrap(transformed("modules"), mesh), tokens()).shares == pytest.approx(expected, rel=1e-6)


def test_where_no_branch_ran_there_is_a_warning():
    model = transformed("modules")
    with (
        pytest.warns(UserWarning, match="no branch ran"),
        noble_fx.watching(model) as seen,
        noble_fx.disabled(model),
    ):
        model(tokens())
    assert seen.shares == {}
    assert math.isnan(seen.share)
    with pytest.raises(ZeroDivisionError), noble_fx.watching(model):  # an error is not followed by a warning
        raise ZeroDivisionError


def test_a_branch_that_is_off_has_no_share():
    model = transformed("modules")
    with noble_fx.disabled(model.blocks[0].fc1):
        shares = watched(model, tokens()).shares
    assert "blocks.0.fc1" not in shares
    assert len(shares) == 11


def test_it_prints_a_line_for_each_site():
    seen = watched(transformed("modules"), tokens(), tokens())
    lines = [line.split() for line in str(seen).splitlines()]
    assert lines[0] == ["site", "share", "calls"]
    assert lines[1] == ["blocks.0.q_proj", f"{seen.shares['blocks.0.q_proj']:.3g}", "2"]
    assert lines[-1] == ["total", f"{seen.share:.3g}", "24"]


def one(y, added):
    seen = Seen()
    seen.note(Call("site", y, y, lambda: [added], list))
    return seen


def test_nothing_and_zero_and_what_is_too_large_to_square():
    assert one(torch.zeros(0), torch.zeros(0)).shares == {}
    assert one(torch.zeros(3), torch.zeros(3)).shares == {"site": 0}
    assert one(torch.zeros(3), torch.ones(3)).share == math.inf
    seen = one(torch.full((1,), 2e30), torch.full((1,), 1e30))
    seen.note(Call("site", torch.ones(1), torch.full((1,), 2e30), lambda: [torch.full((1,), 1e30)], list))
    assert seen.share == pytest.approx(0.5)


def test_what_cannot_be_watched_is_refused():
    for model in (tiny(), nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match="no branches"), noble_fx.watching(model):
            pass

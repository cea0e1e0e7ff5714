"""Every architecture of the zoo in every capture that applies; `tests/zoo.py` holds the table of expectations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.attach.attach import named_branches
from tests.zoo import ZOO, Entry, transform_entry

CASES = [(entry, capture) for entry in ZOO for capture in entry.expected]


def floats(output: object) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


def loss(model: nn.Module, inputs: dict) -> Tensor:
    return sum(t.square().mean() for t in floats(model(**inputs)))


@pytest.mark.parametrize(("entry", "capture"), CASES, ids=[f"{e.name}-{c}" for e, c in CASES])
def test_architecture(entry: Entry, capture: str):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, inputs = entry.build().eval(), entry.inputs()
    plain, before = copy.deepcopy(model), floats(model(**inputs))

    made = transform_entry(entry, capture, model)
    sites = noble_fx.sites(made)
    assert sum(site.selected for site in sites) == entry.expected[capture], [(s.fqn, s.reason) for s in sites]
    assert all(site.reason for site in sites)
    if capture != "modules":
        assert noble_fx.programs(made)

    branches = named_branches(made)
    with torch.no_grad():
        for branch in branches.values():
            branch.up.zero_()
    for one, other in zip(before, floats(made(**inputs)), strict=True):  # U = 0 is the original
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)

    torch.manual_seed(1)
    with torch.no_grad():
        for branch in branches.values():
            branch.up.normal_(std=0.1)
    expected = loss(made, inputs)
    expected.backward()
    silent = [
        f"{name}.{n}" for name, branch in branches.items() for n, p in branch.named_parameters() if not _has_gradient(p)
    ]
    assert not silent

    answer = made.load_state_dict(plain.state_dict(), strict=False)
    assert not answer.unexpected_keys
    assert all(".noble." in f".{key}" for key in answer.missing_keys)

    # Dynamo alone for the user's own code, ahead-of-time autograd as well for the graphs, which are this project's.
    then = "eager" if capture == "modules" else "aot_eager"
    compiled = torch.compile(made, backend="noble_fx", options={"then": then})
    with torch.no_grad():
        torch.testing.assert_close(loss(compiled, inputs), expected.detach(), atol=1e-5, rtol=1e-4)


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


@pytest.mark.parametrize("entry", [e for e in ZOO if e.refuses], ids=lambda e: e.name)
def test_what_no_graph_can_hold_is_refused(entry: Entry):
    with pytest.raises(CaptureError, match=entry.refuses) as error:
        transform_entry(entry, "export", entry.build())
    assert "capture='modules'" in str(error.value)


@pytest.mark.parametrize("entry", ZOO, ids=lambda e: e.name)
def test_auto_gives_the_very_object_back(entry: Entry):
    model = entry.build()
    kind, chosen = type(model), entry.expected.get("modules", 0)
    if not chosen:
        with pytest.raises(ConfigError, match="capture='export'"):
            transform_entry(entry, "auto", model)
    else:
        assert transform_entry(entry, "auto", model) is model
    assert type(model) is kind or isinstance(model, noble_fx.layers.base.Augmented)
    assert len(named_branches(model)) == chosen

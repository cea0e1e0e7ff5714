"""Every architecture of the zoo in every capture that applies; `tests/zoo/expected.py` holds what is expected."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.attach.attach import named_branches
from noble_fx.branches.base import Branch
from tests.samples import sampled
from tests.zoo import BY_NAME, ZOO, Entry, transform_entry
from tests.zoo.document import PATH, document
from tests.zoo.entry import left_out_of, roles_of
from tests.zoo.expected import EXPECTED

# Graphs take seconds each, so the suite makes those of different kinds; `make test-long` makes all.
GRAPHS_IN_SUITE = {
    "GPT-2", "Mixtral", "BERT", "CNN + MLP", "LSTM classifier", "tied weights", "a block called twice",
    "bare parameters",
}  # fmt: skip
COMPILED_IN_SUITE = {"GPT-2", "Phi-3.5-MoE", "CNN + MLP", "decides on values"}
COMPILED_AFTER_EXPORT_IN_SUITE = {"CNN + MLP"}


def floats(output: object) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


def run(model: nn.Module, entry: Entry) -> list[Tensor]:
    with torch.no_grad():
        return floats(model(**entry.inputs()))


def loss(model: nn.Module, entry: Entry) -> Tensor:
    return sum(t.square().mean() for t in floats(model(**entry.inputs())))


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def built(entry: Entry) -> nn.Module:
    torch.manual_seed(0)
    torch._dynamo.reset()
    return entry.build().eval()


def loud(model: nn.Module) -> nn.Module:
    """The model with branches that change its result."""
    torch.manual_seed(1)
    with torch.no_grad():
        for branch in named_branches(model).values():
            branch.up.normal_(std=0.1)
    return model


def idle(model: nn.Module, name: str, branch: Branch) -> bool:
    """Whether it belongs to an expert whose own matrix gets no gradient either: no token was sent there."""
    if not branch.site.experts:
        return False
    grad = model.get_parameter(branch.site.weight).grad
    assert grad is not None
    assert grad.abs().sum() > 0, "no expert got a token"
    return not grad[int(name.rpartition(".")[2])].abs().sum() > 0


def without_gradient(model: nn.Module, entry: Entry) -> list[str]:
    """Parameters of branches that get none, but for the branch that is known to, and experts that got no token."""
    loss(model, entry).backward()
    known = EXPECTED[entry.name].silent
    return [
        f"{name}.{n}"
        for name, branch in named_branches(model).items()
        if (not known or known not in name) and not idle(model, name, branch)
        for n, p in branch.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]


def check_modules(entry: Entry) -> None:
    """The user's own object, changed by its branches alone, and given back bit for bit."""
    model, expected = built(entry), EXPECTED[entry.name]
    plain, before = copy.deepcopy(model), run(model, entry)
    if not expected.modules:
        with pytest.raises(ConfigError, match="capture='export'"):
            transform_entry(entry, "auto", model)
        assert not named_branches(model)
        return
    assert transform_entry(entry, "auto", model) is model
    sites = noble_fx.sites(model)
    assert (roles_of(sites), left_out_of(sites)) == (expected.roles, expected.left_out), [
        (site.fqn, site.role, site.reason) for site in sites
    ]
    changed = run(loud(model), entry)
    assert not same(changed, before)
    with noble_fx.disabled(model):
        assert same(run(model, entry), before)
    assert without_gradient(model, entry) == []
    with tempfile.TemporaryDirectory() as folder:
        noble_fx.save(model, Path(folder) / "model")
        assert same(run(noble_fx.load(plain, Path(folder) / "model"), entry), changed)
    assert noble_fx.remove(model) is model
    assert same(run(model, entry), before)
    assert not named_branches(model)


def check_graphs(entry: Entry, capture: str) -> None:
    """U = 0 is the original, gradients reach every branch, an untouched checkpoint loads."""
    model = built(entry)
    plain, before = copy.deepcopy(model), run(model, entry)
    made = transform_entry(entry, capture, model)
    sites = noble_fx.sites(made)
    assert sum(site.selected for site in sites) == EXPECTED[entry.name].graphs[capture], [
        (site.fqn, site.reason) for site in sites
    ]
    assert all(site.reason for site in sites)
    assert noble_fx.programs(made)
    with torch.no_grad():
        for branch in named_branches(made).values():
            branch.up.zero_()
    torch.testing.assert_close(run(made, entry), before, atol=1e-5, rtol=1e-4)
    assert without_gradient(loud(made), entry) == []
    answer = made.load_state_dict(plain.state_dict(), strict=False)
    assert not answer.unexpected_keys
    assert all(".noble." in f".{key}" for key in answer.missing_keys)


def check_compiled(entry: Entry, capture: str = "modules") -> None:
    """torch.compile gives the same loss."""
    made = loud(transform_entry(entry, capture, built(entry)))
    # Dynamo alone for the user's own code, ahead-of-time autograd as well for the graphs, which are this project's.
    then = "eager" if capture == "modules" else "aot_eager"
    compiled = torch.compile(made, backend="noble_fx", options={"then": then})
    with torch.no_grad():
        torch.testing.assert_close(loss(compiled, entry), loss(made, entry), atol=1e-5, rtol=1e-4)


def cases(names: set[str], entries: list[Entry]) -> list:
    """The entries as cases of a test, those not named marked as long."""
    there = names & {entry.name for entry in entries}  # not every architecture goes into every capture
    return sampled(entries, there, lambda entry: entry.name)


EXPORTED = [entry for entry in ZOO if "export" in EXPECTED[entry.name].graphs]
TRACED = [entry for entry in ZOO if "fx" in EXPECTED[entry.name].graphs]
LAYERED = [entry for entry in ZOO if EXPECTED[entry.name].modules]
CHECKS: list[tuple[str, Callable[[Entry], None], list[Entry]]] = [
    ("modules", check_modules, ZOO),
    ("fx", lambda entry: check_graphs(entry, "fx"), TRACED),
    ("export", lambda entry: check_graphs(entry, "export"), EXPORTED),
    ("compiled", check_compiled, LAYERED),
]


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_modules(entry: Entry):
    check_modules(entry)


@pytest.mark.parametrize("entry", TRACED, ids=lambda entry: entry.name)
def test_fx(entry: Entry):
    check_graphs(entry, "fx")
    check_compiled(entry, "fx")


@pytest.mark.parametrize("entry", cases(GRAPHS_IN_SUITE, EXPORTED))
def test_export(entry: Entry):
    check_graphs(entry, "export")


@pytest.mark.parametrize("entry", cases(COMPILED_IN_SUITE, LAYERED))
def test_compiled(entry: Entry):
    check_compiled(entry)


@pytest.mark.parametrize("entry", cases(COMPILED_AFTER_EXPORT_IN_SUITE, EXPORTED))
def test_compiled_after_export(entry: Entry):
    check_compiled(entry, "export")


REFUSED_IN_SUITE = {"RecurrentGemma", "Funnel", "Wav2Vec2", "decides on values"}


@pytest.mark.parametrize("entry", cases(REFUSED_IN_SUITE, [e for e in ZOO if EXPECTED[e.name].export_refuses]))
def test_what_no_graph_can_hold_is_refused(entry: Entry):
    with pytest.raises(CaptureError, match=re.escape(EXPECTED[entry.name].export_refuses)) as error:
        transform_entry(entry, "export", built(entry))
    assert "capture='modules'" in str(error.value)


def test_every_architecture_is_expected_and_documented():
    assert list(EXPECTED) == list(BY_NAME)
    assert len(ZOO) == len(BY_NAME) >= 60
    assert set(BY_NAME) >= GRAPHS_IN_SUITE | COMPILED_IN_SUITE | COMPILED_AFTER_EXPORT_IN_SUITE
    assert PATH.read_text(encoding="utf-8") == document(), "write it with `python -m tests.zoo`"

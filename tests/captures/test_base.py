"""The interface of captures, through a capture of a user's own."""

import pytest
import torch
from torch import fx, nn

import noble_fx
from noble_fx import CaptureError
from noble_fx.attach.attach import named_branches
from noble_fx.captures import Capture, Examples, Plan, captured, register_capture, table
from noble_fx.captures.base import check_model
from noble_fx.captures.exported_model import GraphOverTree
from noble_fx.errors import Refusal
from noble_fx.sites.choose import choose
from tests.models import loud, tiny, tokens


class Traced(nn.Module):
    """The user's model beside a graph of it that runs."""

    def __init__(self, tree: nn.Module, graph: fx.Graph):
        super().__init__()
        self.tree = tree
        self.__dict__["program"] = GraphOverTree(tree, graph, {}, "Traced")

    def forward(self, *inputs):
        return self.program(*inputs)


class Unchecked(Capture):
    """A capture in one class: `fx.Tracer` without any check, the result a module of another class."""

    def plan(self, model, config, examples):
        if not isinstance(model, nn.Module) or not any(True for _ in model.children()):
            return Refusal("it has no modules")
        return Plan(config, choose(model, self.maps(model), config), fx.Tracer().trace(model))

    def build(self, model, plan):
        made = Traced(model, plan.graphs)
        self.rewrite(made, "train")
        return made

    def holds(self, module):
        return isinstance(module, Traced)

    def graphs(self, module):
        return {"": module.program}

    def notes(self, module):
        return ("traced without a check",)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))
    monkeypatch.setattr(table, "CAPTURES", table.CAPTURES)
    before = list(table.CAPTURES)
    yield
    table.CAPTURES[:] = before


def test_a_capture_of_the_users_own_works_through_every_verb():
    register_capture("unchecked", Unchecked)
    plain, x = tiny(), tokens()
    base = plain(x)
    made = loud(noble_fx.transform(plain, rank=4, capture="unchecked", seed=0))
    assert isinstance(made, Traced)
    assert [type(capture) for capture, _ in captured(made)] == [Unchecked]
    twin = loud(noble_fx.transform(tiny(), rank=4, seed=0))
    torch.testing.assert_close(made(x), twin(x))
    (program,) = noble_fx.programs(made)
    assert sum(step.rule == "fuse_branch" and not step.skipped for step in program.history) == 12
    assert "traced without a check" in str(noble_fx.explain(made))
    with noble_fx.disabled(made):
        assert torch.equal(made(x), base)
    torch.testing.assert_close(made(x), twin(x))
    noble_fx.remove(made)
    assert torch.equal(made(x), base)
    assert not named_branches(made)
    assert "noble" not in str(made.program.graph)


def test_a_refusal_is_an_error_with_its_reason():
    register_capture("unchecked", Unchecked)
    with pytest.raises(
        CaptureError,
        match=r"declines this model: it has no modules\. What works for this model: capture=.modules",
    ):
        noble_fx.transform(nn.Linear(8, 8), rank=4, select="all", capture="unchecked")


class Silent(Unchecked):
    def plan(self, model, config, examples):
        return None


class BuildsNothing(Unchecked):
    def build(self, model, plan):
        super().build(model, plan)


class Interrupted(Unchecked):
    def build(self, model, plan):
        super().build(model, plan)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Silent, CaptureError, r"Silent\.plan answered None, which is neither a Plan nor a Refusal"),
        (BuildsNothing, CaptureError, r"BuildsNothing\.build answered None, no module"),
        (Interrupted, KeyboardInterrupt, None),
    ],
)
def test_what_goes_wrong_in_a_capture_leaves_the_model_as_it_was(kind, error, message):
    register_capture("mine", kind)
    model, x = tiny(), tokens()
    before, classes = model(x), [type(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        noble_fx.transform(model, rank=4, capture="mine", init_base=True)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(x), before)


def test_examples_take_a_tensor_a_sequence_or_nothing():
    x = torch.ones(2)
    assert Examples.of(x).args == Examples.of([x]).args == Examples.of((x,)).args == (x,)
    assert not Examples.of()
    assert not Examples.of((), {})
    assert Examples.of(None, {"x": x})
    assert Examples.of(dynamic_shapes={"x": None})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.compile(tiny()), "already compiled; transform the plain model"),
        (lambda: torch.jit.script(nn.Linear(8, 8)), "ScriptModule"),
        (lambda: "model", "takes an nn.Module, not str"),
    ],
)
def test_what_is_no_plain_module_is_refused(make, message):
    with pytest.raises(CaptureError, match=message):
        check_model(make())
    with pytest.raises(CaptureError, match=message):
        noble_fx.transform(make(), rank=4)


@pytest.mark.parametrize("capture", ["fx", "modules", "export"])
def test_a_failure_while_branches_are_switched_off_leaves_them_on(capture, monkeypatch):
    examples = {"example_inputs": (tokens(),)} if capture == "export" else {}
    model = loud(noble_fx.transform(tiny(), rank=4, capture=capture, seed=0, **examples))
    expected = model(tokens())
    kind = next((type(capture) for capture, _ in captured(model)), None)
    if kind is not None:

        def fail(self, module):
            raise RuntimeError("not now")

        monkeypatch.setattr(kind, "disabled", fail)
    with pytest.raises(RuntimeError, match="not now"), noble_fx.disabled(model):
        raise RuntimeError("not now")
    assert torch.equal(model(tokens()), expected)
    assert all(branch.enabled for branch in named_branches(model).values())

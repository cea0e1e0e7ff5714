"""Graphs made to be looked at: of any model of modules, and without a trace in it."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError
from noble_fx.schema import LINEAR
from tests.models import WithOptional, loud, tiny, tokens, transformed
from tests.zoo import Branching


def test_by_symbolic_tracing_where_that_is_faithful():
    model = transformed("modules")
    (program,) = noble_fx.programs(model)
    (run,) = noble_fx.programs(transformed("fx"))
    assert program.mode == "looking"
    assert str(program) == str(run)
    assert program.history == run.history
    assert program.sites == noble_fx.sites(model)
    assert noble_fx.programs(model, tokens())[0].history == run.history


def test_by_export_from_inputs_where_it_is_not():
    model = loud(noble_fx.transform(WithOptional().eval(), rank=4))
    with pytest.raises(CaptureError, match=r"optional argument 'scale'.*noble_fx.programs\(model, \*inputs\)"):
        noble_fx.programs(model)
    for args, kwargs in [((tokens(),), {}), ((), {"idx": tokens(), "scale": 2.0})]:
        (program,) = noble_fx.programs(model, *args, **kwargs)
        assert program.mode == "looking"
        assert program.groups == (2, 2)
        assert str(program).count("torch.ops.noble_fx.linear.") == 8


def test_neither_says_why():
    model = noble_fx.transform(Branching(), rank=2, select="all")
    with pytest.raises(CaptureError, match=r"no graph of this model to look at: .*decides on the values"):
        noble_fx.programs(model, x=torch.randn(2, 12))
    with pytest.raises(CaptureError, match="do not fit forward"):
        noble_fx.programs(loud(noble_fx.transform(WithOptional(), rank=4)), tokens(), tokens(), tokens())


class Counting(WithOptional):
    """Leaves traces wherever it is run."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.calls: list[int] = []

    def forward(self, idx, scale=None):
        self.steps.add_(1)
        self.calls.append(1)
        return super().forward(idx, scale)


@pytest.mark.parametrize("make", [tiny, Counting])
def test_nothing_of_the_live_model_changes_and_nothing_can_run(make):
    model = loud(noble_fx.transform(make().train(), rank=4, seed=0))
    model.blocks[0].eval()
    before = {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    classes = [(id(m), type(m), m.training, len(m._forward_hooks)) for m in model.modules()]
    (program,) = noble_fx.programs(model, tokens())
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for name, (identity, version, value) in before.items():
        assert (id(after[name]), after[name]._version) == (identity, version)
        assert torch.equal(after[name], value)
    assert [(id(m), type(m), m.training, len(m._forward_hooks)) for m in model.modules()] == classes
    assert not getattr(model, "calls", [])
    assert all(tensor.is_meta for tensor in program.graph_module.state_dict().values())


def test_eager_branches_and_attention_are_shown_as_they_are():
    model = noble_fx.transform(tiny(), rank=4, fuse=False)
    (program,) = noble_fx.programs(model)
    assert {step.skipped for step in program.history if step.rule == "fuse_branch" and step.skipped} >= {"fuse=False"}
    assert LINEAR not in {node.target for node in program.graph_module.graph.nodes}
    attention = noble_fx.transform(nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)), rank=4)
    with pytest.raises(CaptureError, match="which the graph calls as a whole"):
        noble_fx.programs(attention)
    (program,) = noble_fx.programs(attention, torch.randn(2, 5, 16))
    inserted = [step for step in program.history if step.rule == "insert_branch" and not step.skipped]
    assert len(inserted) >= len([site for site in program.sites if site.selected]) == 4


def test_of_a_plain_model_and_of_a_folded_one():
    (program,) = noble_fx.programs(tiny())
    assert program.history
    assert all(step.skipped for step in program.history)
    (folded,) = noble_fx.programs(noble_fx.fold(transformed("modules")))
    assert "act.first" not in str(folded)


def test_a_model_that_cannot_be_copied_says_so():
    class Unique(WithOptional):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one of me")

    model = noble_fx.transform(Unique(), rank=4)
    with pytest.raises(CaptureError, match="cannot be copied: RuntimeError: there is only one of me"):
        noble_fx.programs(model, tokens())


def test_compiled_graphs_come_after_it():
    torch._dynamo.reset()
    model = transformed("modules")
    torch.compile(model, backend="noble_fx", options={"then": "eager"})(tokens())
    assert [program.mode for program in noble_fx.programs(model)] == ["looking", "compiled"]

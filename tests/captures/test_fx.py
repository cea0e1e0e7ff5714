"""The fx capture: the user's own object runs a graph, and stays what it was in everything else."""

import copy
import io

import pytest
import torch
from torch import fx, nn

import noble_fx
from noble_fx import CaptureError
from noble_fx.captures.fx import CapturedModel
from noble_fx.schema import LINEAR, LINEAR_GROUP
from tests.models import Base, tiny, tokens, transformed


def reloaded(model: nn.Module) -> nn.Module:
    """The model after `torch.save` and `torch.load`."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_accepts_what_is_faithful_and_keeps_dropout_alive():
    model = tiny()
    captured = noble_fx.transform(model, rank=4, capture="fx")
    assert isinstance(captured, CapturedModel)
    captured.train()
    assert not torch.equal(captured(tokens()), captured(tokens()))
    captured.eval()
    assert torch.equal(captured(tokens()), captured(tokens()))


def test_a_layer_inside_a_leaf_or_never_called_declines():
    class Unused(Base):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x)

    with pytest.raises(CaptureError, match="spare is not called as a module"):
        noble_fx.transform(Unused(), rank=4, capture="fx")
    encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.TransformerEncoderLayer(8, 2, 16))
    with pytest.raises(CaptureError, match=r"0\.self_attn is inside 0, which the graph calls as a whole"):
        noble_fx.transform(encoder, rank=4, capture="fx")


def test_the_captured_model_is_the_models_own_tree():
    model = tiny()
    model.config = {"name": "tiny"}
    keys = list(model.state_dict())
    captured = noble_fx.transform(model, rank=4, capture="fx")
    assert captured is model
    assert [key for key in captured.state_dict() if ".noble." not in key] == keys
    assert captured.blocks[0] is model.blocks[0]
    assert captured.config == {"name": "tiny"}
    assert type(captured).__name__ == "Tiny"


@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_copies_are_whole_and_independent(way):
    captured = transformed("fx")
    before = captured(tokens())
    copied = copy.deepcopy(captured) if way == "deepcopy" else reloaded(captured)
    assert torch.equal(copied(tokens()), before)
    assert noble_fx.sites(copied) == noble_fx.sites(captured)
    assert noble_fx.programs(copied)[0].history == noble_fx.programs(captured)[0].history
    with torch.no_grad():
        copied.blocks[0].q_proj.weight.add_(1)
    assert torch.equal(captured(tokens()), before)
    assert not torch.equal(copied(tokens()), before)


def test_the_graph_reads_parameters_live():
    captured = transformed("fx")
    state = {name: tensor.clone() * 0.5 for name, tensor in captured.state_dict().items()}
    captured.load_state_dict(state, assign=True)
    other = transformed("modules")
    other.load_state_dict(state)
    torch.testing.assert_close(captured(tokens()), other(tokens()))


def test_both_captures_compute_the_same():
    assert torch.equal(transformed("fx")(tokens()), transformed("modules")(tokens()))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.meta = nn.Linear(8, 8), {"author": "somebody"}

    def forward(self, x):
        return self.linear(x)


class Coded(Named):
    def code(self):
        return 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Named, "it has 'meta', which is a GraphModule's own word"),
        (Coded, "it has 'code', which is"),
        (lambda: fx.symbolic_trace(tiny()), "it is a GraphModule already"),
    ],
)
def test_names_that_a_graph_module_needs_are_declined(make, reason):
    model = make()
    with pytest.raises(CaptureError, match=f"capture='fx' declines this model: {reason}"):
        noble_fx.transform(model, rank=4, select="all", capture="fx")
    assert noble_fx.transform(model, rank=4, select="all") is model


def test_a_key_of_another_version_is_set_from_the_branch():
    made = transformed("fx")
    expected = made(tokens())
    for node in made.graph.nodes:
        if node.target in (LINEAR, LINEAR_GROUP):
            node.args = (*node.args[:-1], "cosnet-of-another-version")
    assert torch.equal(reloaded(made)(tokens()), expected)

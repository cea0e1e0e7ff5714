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
from tests.models import Base, loud, tiny, tokens, transformed


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


class Surface(nn.Module):
    """Constants, a property, methods, an overridden train() and a hook that reads old checkpoints."""

    WIDTH = 8

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.renamed = 0
        self.register_load_state_dict_pre_hook(self._rename)
        self.root = [self]  # a list, so that it is no submodule

    def _rename(self, module, state, *rest):
        assert module is self
        self.renamed += 1
        for key in [key for key in state if key.startswith("old.")]:
            state[key[4:]] = state.pop(key)

    @property
    def device(self):
        return self.a.weight.device

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def twice(self, x):
        return self(self(x))

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def examples(capture: str, x: torch.Tensor) -> dict:
    return {"example_inputs": (x,)} if capture == "export" else {}


@pytest.mark.parametrize("capture", ["fx", "export"])
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, reloaded], ids=["itself", "deepcopy", "pickle"])
def test_the_users_class_lives_on(capture, copied):
    torch.manual_seed(0)
    plain, x = Surface().train(), torch.randn(4, 8)
    made = loud(noble_fx.transform(plain, rank=2, select="all", capture=capture, seed=0, **examples(capture, x)))
    assert made is plain
    other = copied(made)
    assert isinstance(other, Surface)
    assert type(other).__name__ == "Surface"
    assert (other.WIDTH, other.device.type) == (8, "cpu")
    other.train()
    assert other.training
    assert not other.norm.training
    assert torch.equal(other.twice(x), other(other(x)))
    assert torch.equal(other(x), made(x))
    state = other.state_dict()
    other.load_state_dict({("old." + key if key.startswith("a.") else key): value for key, value in state.items()})
    assert other.renamed == 1
    noble_fx.remove(other)
    assert type(other) is Surface
    assert not set(vars(other)) - set(vars(Surface()))
    assert other(x).shape == (4, 8)


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_references_to_the_whole_lead_to_the_copy(capture):
    x = torch.randn(4, 8)
    made = noble_fx.transform(Surface(), rank=2, select="all", capture=capture, **examples(capture, x))
    for other in (copy.deepcopy(made), reloaded(made)):
        assert other.root[0] is other


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_a_shallow_copy_shares_its_layers(capture):
    x = torch.randn(4, 8)
    made = loud(noble_fx.transform(Surface(), rank=2, select="all", capture=capture, **examples(capture, x))).eval()
    other = copy.copy(made)
    assert other.a is made.a
    assert torch.equal(other(x), made(x))


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_a_sequential_can_be_indexed_sliced_and_iterated(capture):
    x = torch.randn(4, 8)
    layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    made = loud(noble_fx.transform(layers, rank=2, capture=capture, **examples(capture, x)))
    assert len(made) == 3
    assert [type(layer) for layer in made] == [noble_fx.NobleLinear, nn.ReLU, noble_fx.NobleLinear]
    assert made[0] is next(iter(made))
    assert type(made[:2]) is nn.Sequential
    torch.testing.assert_close(made[2](made[:2](x)), made(x))
    torch._dynamo.reset()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x))


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

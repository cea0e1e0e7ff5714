"""A folded copy says what the model says, with σ's constants gone."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.branches.activations import Mixer, ScaleShift, Signed
from noble_fx.fold import fold_in_place
from noble_fx.transform import named_branches
from tests.models import loud, tiny, tokens, transformed
from tests.samples import ACTIVATIONS, crossed, long

FOLDABLE = {"cosnet", "cosnet_double", "cos", "neg_silu", "neg_gelu", "flip_silu", "flip_gelu", "silu_shift"} | {
    f"{name}_scale" for name in ("gelu", "silu", "tanh", "leaky_relu")
}


def disturbed(model: nn.Module) -> nn.Module:
    """Every parameter of σ and every bias moved away from its start, so that none can be dropped unseen."""
    torch.manual_seed(2)
    with torch.no_grad():
        for branch in named_branches(loud(model)).values():
            for parameter in [*branch.act.parameters(), *[b for b in [branch.down_bias] if b is not None]]:
                parameter.add_(torch.randn_like(parameter) / 2)
    return model


def layer(act, preset="reference", **settings) -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 10, bias=False))
    return disturbed(noble_fx.transform(model, rank=6, act=act, preset=preset, seed=0, **settings)).double()


ACTS = sorted(noble_fx.activation_names(), key=lambda name: name not in ACTIVATIONS)


@pytest.mark.parametrize(
    ("act", "preset"),
    [
        *crossed(ACTS[: len(ACTIVATIONS)], ["paper", "reference"]),
        *(long(act, preset) for act in ACTS[len(ACTIVATIONS) :] for preset in ("paper", "reference")),
    ],
)
def test_every_activation_says_the_same(act, preset):
    model, x = layer(act, preset), torch.randn(3, 5, 12, dtype=torch.float64)
    folded = noble_fx.fold(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert folded.get_submodule("0.noble").folded == (act in FOLDABLE)
    left = [type(m).__name__ for m in folded.get_submodule("0.noble").act.modules()]
    assert not {"Cosine", "ScaleShift", "Signed"} & set(left)


@pytest.mark.parametrize("act", ["cosnet", "gelu_scale", "swiglu_net"])
def test_the_eager_branch_folds_as_well(act):
    model, x = layer(act, fuse=False, capture="modules"), torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(noble_fx.fold(model)(x), model(x), rtol=1e-12, atol=1e-12)


def test_the_original_is_unchanged_and_shares_nothing():
    model = transformed("modules").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = noble_fx.fold(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    storages = {p.data_ptr() for p in model.parameters()}
    assert not storages & {p.data_ptr() for p in folded.parameters()}
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())


EXAMPLES = {"example_inputs": (tokens(),)}


@pytest.mark.parametrize(("capture", "act"), crossed(["fx", "modules", "export"], ["cosnet", "gelu_scale"]))
def test_every_capture(capture, act):
    extra = EXAMPLES if capture == "export" else {}
    model = disturbed(noble_fx.transform(tiny(), rank=4, act=act, capture=capture, seed=0, **extra)).eval()
    folded = noble_fx.fold(model)
    torch.testing.assert_close(folded(tokens(3, 7)), model(tokens(3, 7)), rtol=1e-4, atol=1e-4)
    names = [name for name, _ in folded.named_parameters() if ".noble." in name]
    assert not any(word in name for name in names for word in ("frequency", "phase", "scale", "shift"))
    base = {name: value for name, value in model.state_dict().items() if ".noble." not in name}
    assert all(torch.equal(folded.state_dict()[name], value) for name, value in base.items())
    with noble_fx.disabled(model), noble_fx.disabled(folded):
        assert torch.equal(folded(tokens()), model(tokens()))
    for program in () if capture == "modules" else noble_fx.programs(folded):
        done = [step for step in program.history if step.rule == "fold_branch"]
        assert len([step for step in done if not step.skipped]) == 12


@pytest.mark.parametrize("capture", ["fx", "modules", "export"])
def test_a_folded_model_is_an_ordinary_module(capture):
    model = transformed(capture, **(EXAMPLES if capture == "export" else {})).eval()
    folded = noble_fx.fold(model)
    expected = folded(tokens())
    for other in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)), noble_fx.fold(folded)):
        assert torch.equal(other(tokens()), expected)
    assert "12 branches are folded" in str(noble_fx.explain(folded))


def test_attention_and_parts_of_a_weight():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True)
    model = disturbed(noble_fx.transform(encoder, rank=4, act="silu_shift", select="all", capture="modules")).eval()
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(noble_fx.fold(model)(x), model(x), rtol=1e-4, atol=1e-4)
    cross = disturbed(noble_fx.transform(nn.MultiheadAttention(16, 2), rank=4, act="gelu_scale", select="all")).eval()
    query, key = torch.randn(3, 2, 16), torch.randn(4, 2, 16)
    torch.testing.assert_close(
        noble_fx.fold(cross)(query, key, key)[0], cross(query, key, key)[0], rtol=1e-4, atol=1e-4
    )


class Own(nn.Module):
    """A user's activation, which nobody may open."""

    def __init__(self, rank):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(rank))

    def forward(self, h):
        return torch.tanh(self.gain * h)


class OwnSequential(nn.Sequential):
    """A subclass may have a forward of its own; this one does."""

    def forward(self, h):
        return super().forward(h) * 2


def chained(*parts):
    return lambda rank: nn.Sequential(*(part(rank) for part in parts))


PRESET = noble_fx.PRESETS["reference"]


@pytest.mark.parametrize(
    ("act", "left"),
    [
        (Own, ["Own"]),
        (lambda r: OwnSequential(ScaleShift(r), nn.Tanh()), ["OwnSequential", "ScaleShift", "Tanh"]),
        (chained(lambda r: nn.Linear(r, r), ScaleShift, lambda r: nn.Tanh()), ["Sequential", "Linear", "Tanh"]),
        (chained(lambda r: nn.Tanh(), ScaleShift, lambda r: nn.GELU()), ["Sequential", "Tanh", "ScaleShift", "GELU"]),
        (chained(ScaleShift, ScaleShift, Own, ScaleShift, ScaleShift), ["Own"]),
        (
            chained(lambda r: nn.Tanh(), ScaleShift, lambda r: Mixer(r, PRESET), Own),
            ["Sequential", "Tanh", "Mixer", "Own"],
        ),
        (
            chained(lambda r: nn.SiLU(), lambda r: Signed(nn.GELU(), True), ScaleShift),
            ["Sequential", "SiLU", "ScaleShift", "GELU"],
        ),
    ],
)
def test_only_what_is_known_is_opened(act, left):
    model, x = layer(act, fuse=False), torch.randn(4, 12, dtype=torch.float64)
    folded = noble_fx.fold(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert [type(m).__name__ for m in folded.get_submodule("0.noble").act.modules()] == left


def test_a_hook_on_a_part_of_sigma_is_kept():
    model = layer("cos")
    model.get_submodule("0.noble.act").register_forward_hook(lambda module, args, output: output * 3)
    refusal = copy.deepcopy(named_branches(model)["0"]).fold()
    assert refusal.reason == "σ (cos) has no constants to fold"


def test_what_cannot_be_done_with_a_folded_model():
    folded = noble_fx.fold(layer("cosnet"))
    with pytest.raises(ConfigError, match="a folded model is for inference"):
        noble_fx.reset_branches(folded)
    with pytest.raises(ConfigError, match="already carries branches"):
        noble_fx.transform(folded, rank=2)
    with pytest.raises(ConfigError, match="carries no branches, so there is nothing to fold"):
        noble_fx.fold(nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="folded"):
        noble_fx.param_groups(folded, lr=1e-3)
    with pytest.raises(noble_fx.CheckpointError, match="folded"):
        noble_fx.save(folded, "nowhere")
    assert not named_branches(noble_fx.fold(layer("gelu")))["0"].folded


def _hooked(branch):
    branch.act.register_forward_hook(lambda module, args, out: 2 * out)


def _parametrized(branch):
    torch.nn.utils.parametrizations.weight_norm(branch, "up")


@pytest.mark.parametrize(
    ("change", "reason"), [(_hooked, "hooks on the branch .* would be lost"), (_parametrized, "is parametrized")]
)
def test_a_branch_that_is_more_than_its_tensors_is_kept(change, reason):
    model = transformed("modules")
    change(named_branches(model)["blocks.0.fc1"])
    folded = copy.deepcopy(model)
    steps = {step.node: step.skipped for step in fold_in_place(folded)}
    assert re.search(reason, steps["blocks.0.fc1"])
    assert steps["blocks.0.fc2"] == ""
    torch.testing.assert_close(folded(tokens()), model(tokens()), rtol=1e-4, atol=1e-4)

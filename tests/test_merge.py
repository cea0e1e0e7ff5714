"""What is linear becomes one with the weights; what is not stays."""

import copy

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.bases.low_rank import LowRank
from noble_fx.layers.restructure import matrix_of, structure
from noble_fx.merge import linear_part, merge_adapters
from tests.test_stacking import adapted, fill, noble, plain

X = torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def near(one, other):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_of_a_stack_the_linear_half():
    model = fill(adapted(noble())).double()
    y = model(X)
    assert noble_fx.merge(model) is model
    near(model(X), y)
    assert list(model.state_dict()) == list(noble().state_dict())
    assert torch.equal(model[0].noble.down, noble().double()[0].noble.down)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_linear_branches_alone_leave_a_plain_model():
    model = fill(adapted(plain())).double()
    y = model(X)
    near(noble_fx.merge(model)(X), y)
    assert [type(layer) for layer in model] == [type(layer) for layer in plain()]


def test_weights_count_and_what_is_off_stays():
    model = fill(adapted(adapted(noble()), adapter="off", select=["0"])).double()
    noble_fx.use_adapters(model, {"default": 0.5})
    y = model(X)
    near(noble_fx.merge(model)(X), y)
    assert list(model[0].noble.adapters.named()) == ["off"]
    assert not model[0].weight.requires_grad
    with pytest.raises(ConfigError, match=r"σ \(cosnet\) is not linear; every adapter is off"):
        noble_fx.merge(model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("act", ["identity", lambda rank: nn.Linear(rank, rank)])
def test_an_affine_sigma_with_its_shift(act, preset, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8, bias=bias)).double()
    noble_fx.transform(model, rank=3, act=act, preset=preset, select="all")
    nn.init.normal_(model[0].noble.up)
    y = model(X)
    near(noble_fx.merge(model)(X), y)
    assert type(model[0]) is nn.Linear


def test_it_is_rounded_once():
    model = fill(adapted(plain(), select=["0"]))
    part = linear_part(model[0].noble)
    expected = (model[0].weight.double() + part.weight).float()
    assert torch.equal(noble_fx.merge(model)[0].weight, expected)


def test_a_captured_model_whole():
    model = fill(adapted(plain(), capture="fx")).double()
    y = model(X)
    near(noble_fx.merge(model)(X), y)
    assert type(model[0]) is nn.Linear


def test_fold_merges_in_its_copy():
    model = fill(adapted(noble())).double()
    folded = noble_fx.fold(model)
    near(folded(X), model(X))
    assert not any(".adapters." in key for key in folded.state_dict())
    assert any(".adapters." in key for key in model.state_dict())


def test_a_copy_over_the_same_memory_leaves_the_model_alone():
    model = fill(adapted(noble())).double()
    before = copy.deepcopy(model.state_dict())
    shared = copy.deepcopy(model, {id(p): nn.Parameter(p.detach()) for p in model.parameters()})
    with torch.no_grad():
        assert len(merge_adapters(shared)) == 3
    near(shared(X), model(X))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_has_the_operators_of_the_model_without(tmp_path):
    onnx = pytest.importorskip("onnx")
    x = torch.randn(5, 12)

    def operators(model, name):
        noble_fx.export_onnx(model.eval(), (x,), tmp_path / name)  # compares the file's results with the model's
        return [node.op_type for node in onnx.load(tmp_path / name).graph.node]

    assert operators(fill(adapted(noble())), "a.onnx") == operators(noble(), "b.onnx")
    assert operators(fill(adapted(plain())), "c.onnx") == operators(plain_with_nothing(), "d.onnx")


@pytest.mark.parametrize("act", [None, lambda rank: nn.Linear(rank, rank)])
def test_the_file_of_a_captured_model(act, tmp_path):
    onnx, x = pytest.importorskip("onnx"), torch.randn(5, 12)
    settings = {"branch": "lora", "alpha": 1} if act is None else {"act": act}
    model = fill(noble_fx.transform(plain(), rank=2, select="all", capture="fx", **settings)).eval()
    noble_fx.export_onnx(model, (x,), tmp_path / "a.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert operators.count("Gemm") == 3
    assert "MatMul" not in operators


def plain_with_nothing() -> nn.Module:
    return noble_fx.transform(plain(), rank=2, act="identity", select="all")


def tied() -> nn.Module:
    model = plain()
    model.append(nn.Linear(12, 6))
    model[4].weight = model[3].weight
    return adapted(model, select=["3"])


def factorized() -> nn.Module:
    model = plain()
    base = LowRank(12, 20, 5)
    base.fill(matrix_of(model[0]))
    structure(model[0], base, model[0].bias)
    return adapted(model, select=["0"])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (plain, "carries no branches"),
        (noble, r"nothing linear to merge: σ \(cosnet\) is not linear. noble_fx.fold"),
        (tied, "shared with another layer"),
        (factorized, "W is factorized"),
    ],
)
def test_what_cannot_be_merged(model, reason):
    made = model()
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(ConfigError, match=reason):
        noble_fx.merge(made)
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_not_inside_disabled_and_not_a_wrapped_model():
    model = fill(adapted(plain()))
    with noble_fx.disabled(model), pytest.raises(ConfigError, match="leave that, then merge"):
        noble_fx.merge(model)
    with pytest.raises(CaptureError, match="DataParallel"):
        noble_fx.merge(nn.DataParallel(model))

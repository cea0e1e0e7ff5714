"""The export capture: two programs over one tree, the original signature, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.attach.attach import named_branches
from tests.models import Tiny, loud, tiny, tokens
from tests.zoo import Functional, features


def exported(model: nn.Module | None = None, **settings) -> nn.Module:
    """A `Tiny` captured by export, with branches that matter."""
    settings = {"example_inputs": (tokens(),)} | settings
    return loud(noble_fx.transform(model or tiny(), rank=4, capture="export", seed=0, **settings))


class Calls(nn.Module):
    """Positional, keyword, optional and keyword-only arguments; a dict out; dropout and a buffer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, pair=None) -> dict:
        h = self.drop(self.norm(self.fc(x))) * scale
        if mask is not None:
            h = h * mask
        return {"h": h, "pair": None if pair is None else (pair[0] + h, pair[1])}


def calls(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    given = {"example_inputs": (torch.randn(3, 8),)} | kwargs
    return loud(noble_fx.transform(Calls(), rank=2, capture="export", select="all", seed=0, **given))


def test_the_same_as_the_modules_capture_in_value_and_gradient():
    expected, made = loud(noble_fx.transform(tiny(), rank=4, capture="modules", seed=0)), exported()
    for model in (expected, made):
        model(tokens(3, 7)).square().mean().backward()
    torch.testing.assert_close(made(tokens(3, 7)), expected(tokens(3, 7)))
    for (name, p), (other, q) in zip(made.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(p.grad, q.grad)


def test_every_fused_site_is_one_operator_or_one_of_a_group_in_both_programs():
    programs = noble_fx.programs(exported())
    assert [p.mode for p in programs] == ["train", "eval"]
    for program in programs:
        assert program.groups == (2, 2)  # q and v of each block; k has no bias
        assert str(program).count("torch.ops.noble_fx.linear.") + 4 == sum(s.selected for s in program.sites) == 12


def test_parameters_are_the_users_own_under_their_own_names():
    model = tiny()
    before = dict(model.named_parameters())
    made = exported(model)
    after = dict(made.named_parameters())
    assert all(after[name] is p for name, p in before.items())
    assert {n for n in after if n not in before} == {n for n in after if ".noble." in n}
    assert [n for n in made.state_dict() if ".noble." not in n] == list(tiny().state_dict())


def test_both_modes_equal_the_python_model():
    plain = Calls()
    made, x = calls(), torch.randn(6, 8)
    plain.load_state_dict(made.state_dict(), strict=False)
    for training in (True, False):
        outs = []
        for model in (plain.train(training), made.train(training)):
            torch.manual_seed(3)
            with noble_fx.disabled(model):
                outs.append(model(x)["h"])
        assert torch.equal(*outs)


def test_arguments_by_position_by_name_and_none():
    mask = torch.ones(3, 8)
    made = calls(example_inputs=(torch.randn(3, 8), mask), example_kwargs={"pair": (torch.randn(3, 8), None)}).eval()
    x, mask, pair = torch.randn(4, 8), torch.ones(4, 8), (torch.randn(4, 8), None)
    out = made(x, mask, pair=pair)
    assert torch.equal(out["h"], made(mask=mask, x=x, pair=pair, scale=1.0)["h"])
    assert out["pair"][1] is None
    assert calls().eval()(x, None)["pair"] is None


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((), {}, CaptureError, "forward needs 'x'"),
        ((torch.ones(2, 8), torch.ones(2, 8)), {}, CaptureError, "'mask' was not among the example inputs"),
        ((torch.ones(2, 8),), {"scale": 2.0}, CaptureError, "'scale' was not among"),
        ((torch.ones(2, 9),), {}, CaptureError, r"'x' is \[2, 9\], and the graphs take float32\[\*, 8\]"),
        ((torch.ones(2, 8),), {"x": torch.ones(2, 8)}, TypeError, "multiple values"),
        ((torch.ones(2, 8),), {"other": 1}, TypeError, "unexpected keyword"),
    ],
)
def test_a_call_that_the_graphs_do_not_fit_says_so(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        calls()(*args, **kwargs)


@dataclass
class Result:
    """A result type of the user's own."""

    y: Tensor
    extra: Tensor | None = None


torch.export.register_dataclass(Result, serialized_type_name="tests.test_capture_export.Result")


class Typed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Result:
        return Result(self.fc(x))


def test_dataclass_results_keep_their_type():
    made = noble_fx.transform(Typed(), rank=2, capture="export", select="all", example_inputs=torch.ones(2, 8))
    out = made(torch.ones(5, 8))
    assert isinstance(out, Result)
    assert out.y.shape == (5, 8)
    assert out.extra is None


def test_batch_and_sequence_are_dynamic_from_a_batch_of_one():
    made = exported(example_inputs=(tokens(1, 1),))
    assert made(tokens(3, 7)).shape == (3, 7, 20)
    assert "int64[*, *] (* is any size)" in str(noble_fx.explain(made))


def test_dynamic_shapes_of_the_users_own():
    made = exported(dynamic_shapes={"idx": {0: Dim("batch")}})
    assert made(tokens(7, 5)).shape == (7, 5, 20)
    with pytest.raises(CaptureError, match=r"the graphs take int64\[\*, 5\]"):
        made(tokens(2, 6))


def test_save_and_load_without_example_inputs(tmp_path):
    made = exported()
    noble_fx.save(made, tmp_path / "m")
    again = noble_fx.load(tiny(seed=5), tmp_path / "m")
    assert torch.equal(again(tokens(3, 4)), made(tokens(3, 4)))
    given = noble_fx.load(tiny(seed=5), tmp_path / "m", example_inputs=(tokens(),))
    assert torch.equal(given(tokens(3, 4)), made(tokens(3, 4)))


def test_save_and_load_of_bare_parameters(tmp_path):
    made = noble_fx.transform(Functional(), rank=2, select="all", capture="export", seed=0, example_kwargs=features())
    noble_fx.save(loud(made), tmp_path / "m")
    again = noble_fx.load(Functional(), tmp_path / "m")
    assert torch.equal(again(**features()), made(**features()))


def test_load_exports_again_with_the_same_arguments_and_sizes(tmp_path):
    given = {"mask": torch.ones(3, 8), "pair": (torch.randn(3, 8), None), "scale": 2.0}
    made = calls(example_kwargs=given).eval()
    noble_fx.save(made, tmp_path / "m")
    again = noble_fx.load(Calls().eval(), tmp_path / "m")
    assert again.noble_call.examples == made.noble_call.examples
    x = torch.randn(4, 8)
    arguments = {"mask": torch.zeros(4, 8), "pair": (torch.randn(4, 8), None), "scale": 2.0}
    same = pytree.tree_map(
        lambda one, other: one is other or torch.equal(one, other), made(x, **arguments), again(x, **arguments)
    )
    assert same == {"h": True, "pair": (True, True)}


def test_load_keeps_sizes_fixed_that_were(tmp_path):
    noble_fx.save(exported(dynamic_shapes={"idx": {0: Dim("batch")}}), tmp_path / "m")
    again = noble_fx.load(tiny(), tmp_path / "m")
    assert again(tokens(7, 5)).shape == (7, 5, 20)
    with pytest.raises(CaptureError, match=r"the graphs take int64\[\*, 5\]"):
        again(tokens(2, 6))


def test_the_same_seed_gives_the_same_branches_in_every_capture():
    one = noble_fx.transform(tiny(), rank=4, capture="modules", seed=7)
    other = noble_fx.transform(tiny(), rank=4, capture="export", seed=7, example_inputs=(tokens(),))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize("capture", ["auto", "modules", "fx"])
@pytest.mark.parametrize(
    "given",
    [
        {"example_inputs": (tokens(),)},
        {"example_kwargs": {"idx": tokens()}},
        {"dynamic_shapes": {"idx": {0: Dim.AUTO}}},
    ],
    ids=["inputs", "kwargs", "shapes"],
)
def test_example_inputs_are_for_this_capture_alone(capture, given):
    model = tiny()
    with pytest.raises(ConfigError, match=r"for capture='export'.*noble_fx.programs\(model, \*inputs\) shows graphs"):
        noble_fx.transform(model, rank=4, capture=capture, **given)
    assert not named_branches(model)


# --- refusals --------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (tiny, {}, "none were given as example_inputs"),
        (tiny, {"example_inputs": (tokens(), tokens())}, "do not fit forward.*too many positional"),
        (tiny, {"example_kwargs": {"other": tokens()}}, "do not fit forward.*missing a required argument: 'idx'"),
        (Calls, {"example_inputs": (torch.ones(2, 7),)}, "the model itself fails on the example inputs"),
        (tiny, {"example_inputs": (tokens().to("meta"),)}, r"on meta and the model on cpu; move it with .to\('cpu'\)"),
        (Branching, {"example_inputs": (torch.ones(2, 8),)}, "decides on the values of a tensor.*capture='modules'"),
        (lambda: fx.symbolic_trace(tiny()), {"example_inputs": (tokens(),)}, "is a GraphModule"),
        (lambda: torch.compile(tiny()), {"example_inputs": (tokens(),)}, "already compiled"),
        (tiny, {"example_inputs": (tokens(),), "dynamic_shapes": {"no": None}}, "names 'no', which is no example"),
        (
            Calls,
            {"example_inputs": (torch.ones(2, 8),), "dynamic_shapes": {"x": {1: Dim("width")}}},
            "dynamic_shapes does not fit",
        ),
    ],
    ids=["none", "many", "names", "values", "device", "control flow", "graph", "compiled", "shapes name", "shapes"],
)
def test_a_capture_that_cannot_be_is_one_error_and_changes_nothing(model, given, message):
    model = model()
    keys, modes = list(model.state_dict()), [m.training for m in model.modules()]
    with pytest.raises(CaptureError, match=f"(?s){message}"):
        noble_fx.transform(model, rank=2, select="all", capture="export", **given)
    assert list(model.state_dict()) == keys
    assert [m.training for m in model.modules()] == modes


class Cached(Tiny):
    """Takes a cache, as language models do."""

    def forward(self, idx: Tensor, use_cache: bool = True) -> tuple:
        logits = super().forward(idx)
        return (logits, {"keys": logits}) if use_cache else (logits,)


def test_a_cache_is_left_out_and_explain_says_so():
    made = exported(Cached().eval())
    assert len(made(tokens())) == len(made(tokens(), use_cache=False)) == 1
    assert "without a key–value cache" in str(noble_fx.explain(made))
    with pytest.raises(CaptureError, match="'use_cache' is True where the graphs have False"):
        made(tokens(), use_cache=True)


@pytest.mark.long
def test_onnx_of_an_exported_model_keeps_its_argument_names(tmp_path):
    pytest.importorskip("onnxruntime")
    report = noble_fx.export_onnx(exported(), (tokens(),), tmp_path / "m.onnx")
    assert list(report.inputs) == ["idx"]

"""What holds of every kind of base: its law, its counts, its gradients, files, copies and graphs."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx.bases.guided import Guided
from noble_fx.bases.kinds import KINDS, base_of
from noble_fx.errors import ConfigError
from noble_fx.layers.restructure import densify, structure

# (kind, rank for a side of 8 and more, settings): each kind in each of its forms.
FORMS = {
    "factorized": ("factorized", 3, {}),
    "sparse_low_rank": ("sparse_low_rank", 3, {"density": 0.1, "alpha": 6.0}),
    "block_diagonal dense": ("block_diagonal", 4, {"blocks": 2}),
    "block_diagonal shuffle": ("block_diagonal", 4, {"blocks": 2, "form": "shuffle"}),
    "ordered": ("ordered", 6, {}),
    "spectral": ("spectral", 6, {}),
}
SHAPES = [(8, 8), (12, 20), (20, 12), (8, 64)]


def weight_of(in_features, out_features, dtype=torch.float64):
    generator = torch.Generator().manual_seed(in_features * 100 + out_features)
    return torch.randn(out_features, in_features, dtype=torch.float64, generator=generator).to(dtype)


def made(form, in_features=12, out_features=20, dtype=torch.float64, rank=None, guide=None):
    kind, usual, settings = FORMS[form]
    base = KINDS[kind](in_features, out_features, rank or usual, **settings)
    base = base if guide is None else Guided(base, guide)
    torch.manual_seed(0)
    base.to(dtype).draw()
    base.fill(weight_of(in_features, out_features, dtype))
    return base


def inputs(in_features, dtype=torch.float64):
    return torch.randn(2, 3, in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(dtype)


def test_there_is_a_case_for_every_kind():
    assert {kind for kind, *_ in FORMS.values()} == set(KINDS)


@pytest.mark.parametrize(("form", "shape"), itertools.product(FORMS, SHAPES))
@pytest.mark.parametrize("guide", [None, 0.5])
@pytest.mark.parametrize("grad", [True, False])
def test_it_computes_its_merged_weight(form, shape, guide, grad):
    base = made(form, *shape, guide=guide)
    if guide is not None:
        base.between_steps(0.2)
    x, b = inputs(shape[0]), torch.randn(shape[1], dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        expected = F.linear(x, base.merged(), b)
        assert base.merged().shape == shape[::-1]
        torch.testing.assert_close(base(x, b), expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(base(x), expected - b, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(base(x[0, 0]), base(x)[0, 0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_it_is_as_near_as_bfloat16_is(form):
    base = made(form, 32, 48, torch.bfloat16)
    x = inputs(32, torch.bfloat16)
    exact = F.linear(x.double(), copy.deepcopy(base).double().merged())
    y = base(x)
    assert y.dtype is torch.bfloat16
    assert (y - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("form", FORMS)
def test_its_gradients_are_those_through_its_merged_weight(form):
    base = made(form)
    x, b = inputs(12).requires_grad_(), torch.randn(20, dtype=torch.float64, requires_grad=True)
    learns = [x, b, *base.parameters()]
    out = torch.randn(2, 3, 20, dtype=torch.float64)
    own = torch.autograd.grad((base(x, b) * out).sum(), learns)
    merged = torch.autograd.grad((F.linear(x, base.merged(), b) * out).sum(), learns)
    for mine, expected in zip(own, merged, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_it_may_be_differentiated_twice(form):
    base = made(form, 4, 8, rank=4 if "block" in form else 2)
    x = inputs(4)[0].requires_grad_()
    assert torch.autograd.gradcheck(base, (x,))
    assert torch.autograd.gradgradcheck(base, (x,))


@pytest.mark.parametrize("form", FORMS)
def test_under_autocast_it_computes_in_bfloat16(form):
    base, x = made(form, 32, 48, torch.float32), inputs(32, torch.float32).requires_grad_()
    exact = F.linear(x, base.merged())
    with torch.autocast("cpu", torch.bfloat16):
        y = base(x)
    assert y.dtype is torch.bfloat16
    assert (y - exact).norm() < 0.02 * exact.norm()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in [x, *base.parameters()])


@pytest.mark.parametrize("form", FORMS)
def test_torch_func_takes_it(form):
    base, x = made(form), inputs(12)
    parameters = {name: p.detach() for name, p in base.named_parameters()}

    def total(values, x):
        return torch.func.functional_call(base, values, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(total), in_dims=(None, 0))(parameters, x)
    for name, gradient in torch.func.grad(total)(parameters, x[1]).items():
        torch.testing.assert_close(each[name][1], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("form", "shape"), itertools.product(FORMS, SHAPES))
def test_it_has_as_many_parameters_as_it_says(form, shape):
    kind, rank, settings = FORMS[form]
    base = made(form, *shape)
    assert KINDS[kind].parameter_count(*shape, rank, **settings) == sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_filled_it_is_nearer_to_the_weight_than_nothing(form):
    weight = weight_of(12, 20)
    assert (made(form).merged() - weight).norm() < 0.95 * weight.norm()


@pytest.mark.parametrize(("form", "shape"), itertools.product(FORMS, SHAPES))
def test_at_full_rank_it_is_the_weight_or_the_best_of_its_blocks(form, shape):
    base, weight = made(form, *shape, rank=min(shape)), weight_of(*shape)
    left = torch.zeros(())
    if form == "block_diagonal dense":  # each [N, K/2] of rank min(K, N) / 2
        left = torch.linalg.svdvals(weight.unflatten(1, (2, -1)).transpose(0, 1))[..., min(shape) // 2 :].norm()
    if form == "block_diagonal shuffle":  # each [N/2, K/2] of rank min(K, N) / 4
        blocks = weight.reshape(-1, 2, 2, shape[0] // 2).permute(1, 2, 0, 3)
        left = torch.linalg.svdvals(blocks)[..., min(shape) // 4 :].norm()
    torch.testing.assert_close((base.merged() - weight).norm(), left.double(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_rank_above_the_smaller_side_is_refused(form):
    kind, _, settings = FORMS[form]
    with pytest.raises(ConfigError, match=r"its rank 16 is above min\(K, N\) = 12"):
        KINDS[kind](12, 20, 16, **settings)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("guide", [None, 0.25])
def test_what_a_file_says_of_it_makes_it_again(form, guide):
    base = made(form, guide=guide)
    again = base_of(base.described(), 12, 20)
    assert again.described() == base.described()
    again.double().to_empty(device="cpu").load_state_dict(base.state_dict())
    assert torch.equal(again(inputs(12)), base(inputs(12)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_computes_the_same(form, copied):
    base = made(form)
    if copied == "deepcopy":
        again = copy.deepcopy(base)
    elif copied == "pickle":
        again = pickle.loads(pickle.dumps(base))
    else:
        torch.save(base, file := io.BytesIO())
        file.seek(0)
        again = torch.load(file, weights_only=False)
    assert torch.equal(again(inputs(12)), base(inputs(12)))


@pytest.mark.parametrize("form", FORMS)
def test_what_can_be_cut_is_cut_and_the_rest_says_why(form):
    base = made(form)
    importances = base.importances()
    if isinstance(importances, noble_fx.Refusal):
        assert base.truncated(2) == importances
        return
    assert importances.shape == (base.rank,)
    assert torch.equal(importances, importances.sort(descending=True).values)
    cut = base.truncated(2)
    assert (type(cut), cut.rank, cut.merged().shape) == (type(base), 2, (20, 12))
    best = made("factorized", rank=2).merged()
    torch.testing.assert_close(cut.merged(), best, rtol=1e-10, atol=1e-10)
    assert torch.equal(base.merged(), made(form).merged())


def model(form, guide=0.0, **settings):
    kind, rank, own = FORMS[form]
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    chosen = {"rank": 2, "select": "all", "seed": 0, "base": kind, "base_rank": rank, "base_settings": own or None}
    return noble_fx.transform(plain, guide=guide, **chosen | settings)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("guide", [0.0, 0.5])
def test_a_model_is_saved_and_loaded(form, guide, tmp_path):
    saved = model(form, guide)
    noble_fx.save(saved, tmp_path / "m")
    plain = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    loaded = noble_fx.load(plain, tmp_path / "m")
    x = torch.randn(4, 16)
    assert torch.equal(loaded(x), saved(x))
    assert noble_fx.sites(loaded) == noble_fx.sites(saved)
    noble_fx.save(loaded, tmp_path / "again")


@pytest.mark.parametrize("form", FORMS)
def test_the_optimizer_groups_decay_matrices_alone(form):
    made_model = model(form)
    base = made_model[0].base
    made_groups = noble_fx.param_groups(made_model, lr=0.1, weight_decay=0.2)
    groups = {id(p): group for group in made_groups for p in group["params"]}
    for parameter in base.parameters():
        group = groups[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == (0.1, 0.2 if parameter.ndim > 1 else 0.0)
    assert groups[id(made_model[0].noble.up)]["lr_scale"] > 1


@pytest.mark.parametrize("form", FORMS)
def test_its_export_is_verified(form, tmp_path):
    pytest.importorskip("onnxruntime")
    made_model = model(form).eval()
    report = noble_fx.export_onnx(made_model, (torch.randn(4, 16),), tmp_path / "model.onnx")
    assert report.largest_error <= report.tolerance


@pytest.mark.parametrize("form", FORMS)
def test_torch_compile_takes_it(form):
    made_model, x = model(form), torch.randn(4, 16)
    compiled = torch.compile(made_model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), made_model(x))
    expected = torch.autograd.grad(made_model(x).square().sum(), list(made_model.parameters()), allow_unused=True)
    got = torch.autograd.grad(compiled(x).square().sum(), list(made_model.parameters()), allow_unused=True)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_gets_its_weight_back(form):
    layer, base = nn.Linear(12, 20).double(), made(form)
    structure(layer, base, layer.bias)
    expected = layer(inputs(12))
    densify(layer)
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer(inputs(12)), expected, rtol=1e-11, atol=1e-11)

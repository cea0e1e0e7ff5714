"""The bases of a model by name, and a model that is given those that a file describes."""

import copy

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.attach.bases import described_bases, named_bases, put_bases
from noble_fx.bases.low_rank import LowRank
from noble_fx.errors import ConfigError
from noble_fx.layers.restructure import matrix_of, structure
from tests.models import Tiny, tiny, tokens
from tests.one_rank import fsdp2, one_rank

KINDS = {
    "factorized": {"base_rank": 4},
    "sparse_low_rank": {"base_rank": 4, "base_settings": {"density": 0.1}},
    "block_diagonal": {"base_rank": 4, "base_settings": {"blocks": 2, "form": "shuffle"}},
    "ordered": {"base_rank": 8},
    "spectral": {},
}


def model():
    return nn.Sequential(nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 12))


def compressed():
    made = model()
    base = LowRank(12, 20, 3)
    base.fill(matrix_of(made[0]))
    structure(made[0], base, torch.zeros(20))
    return made


def test_they_go_by_the_names_of_their_layers():
    made = compressed()
    assert named_bases(made) == {"0": made[0].base}
    assert named_bases(model()) == {}


def test_what_is_described_can_be_put_into_a_plain_model():
    made, plain = compressed(), model()
    put_bases(plain, described_bases(made))
    plain.load_state_dict(made.state_dict())
    x = torch.randn(4, 12)
    assert torch.equal(plain(x), made(x))
    assert plain[0].bias is not None  # which the plain layer had not


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({"5": {"kind": "factorized", "rank": 3, "bias": False}}, "has no layer 5"),
        ({"1": {"kind": "factorized", "rank": 3, "bias": False}}, "1 is no linear layer"),
        ({"0": {"kind": "factorized", "rank": 3}}, "whether there is a bias"),
        ({"0": {"kind": "other", "rank": 3, "bias": True}}, "base='other' is unknown"),
        ({"0": 3}, "whether there is a bias"),
    ],
)
def test_what_does_not_fit_is_named(described, reason):
    with pytest.raises(ConfigError, match=reason):
        put_bases(model(), described)


def test_a_layer_that_has_one_already_is_refused():
    with pytest.raises(ConfigError, match="another form already"):
        put_bases(compressed(), {"0": {"kind": "factorized", "rank": 3, "bias": False}})


# --- of a model that is transformed ----------------------------------------------------------------------------------


def reformed(kind, plain=None, **settings):
    plain = tiny() if plain is None else plain
    return noble_fx.transform(plain, **{"rank": 2, "seed": 0, "base": kind, **KINDS[kind]} | settings)


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capture", ["modules", "fx"])
def test_every_chosen_w_has_another_form_and_the_rest_of_the_model_is_as_it_was(kind, capture):
    before = values(tiny())
    made = reformed(kind, capture=capture)
    bases = named_bases(made)
    assert list(bases) == [site.fqn for site in noble_fx.sites(made) if site.selected]
    assert {f"{fqn}.weight" for fqn in bases} == before.keys() - made.state_dict().keys()
    for fqn, base in bases.items():
        filled = copy.deepcopy(base)
        filled.fill(before[f"{fqn}.weight"])
        torch.testing.assert_close(base.merged(), filled.merged())
    made.eval()
    with noble_fx.disabled(made):
        alone = made(tokens())
    plain = tiny()
    for fqn, base in bases.items():
        plain.get_submodule(fqn).weight = nn.Parameter(base.merged().detach())
    torch.testing.assert_close(alone, plain.eval()(tokens()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_the_same_bases_whatever_was_chosen_beside_them(kind):
    made, again = reformed(kind), reformed(kind)
    assert same(values(made), values(again))
    alone = reformed(kind, select=["blocks.1.fc1"])
    assert same(values(alone.blocks[1].fc1), values(made.blocks[1].fc1))
    if kind == "sparse_low_rank":
        other = reformed(kind, seed=1).blocks[1].fc1.base
        assert not torch.equal(other.index, made.blocks[1].fc1.base.index)


@pytest.mark.parametrize("kind", KINDS)
def test_with_init_base_it_is_the_form_of_the_weight_that_is_drawn(kind):
    drawn = noble_fx.transform(tiny(), rank=2, seed=0, init_base=True)
    made = reformed(kind, init_base=True)
    for fqn, base in named_bases(made).items():
        filled = copy.deepcopy(base)
        filled.fill(drawn.get_submodule(fqn).weight)
        torch.testing.assert_close(base.merged(), filled.merged())
        if made.get_submodule(fqn).bias is not None:
            assert made.get_submodule(fqn).bias.abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guide", [0.0, 0.5])
@pytest.mark.parametrize("init_base", [True, False])
def test_from_the_meta_device_they_are_drawn_by_the_seed(kind, guide, init_base):
    expected = reformed(kind, guide=guide, init_base=True)
    with torch.device("meta"):
        plain = Tiny()
    made = reformed(kind, plain, guide=guide, init_base=init_base)
    assert all(tensor.is_meta for tensor in [*made.parameters(), *made.buffers()])
    made.to_empty(device="cpu")
    noble_fx.reset_parameters(made)
    for fqn, base in named_bases(made).items():
        assert same(values(base), values(named_bases(expected)[fqn]))
    assert not any(base.lacks_values for base in named_bases(made).values())
    trained = values(made)
    noble_fx.reset_parameters(made)  # nothing that transform did not draw
    assert init_base or same(
        {n: v for n, v in trained.items() if ".base." in n}, {n: v for n, v in values(made).items() if ".base." in n}
    )


def test_drawn_again_a_filled_base_stays_what_it_was_filled_with():
    made = reformed("factorized")
    before = values(made.blocks[0].fc1.base)
    with torch.no_grad():
        made.blocks[0].fc1.noble.up.zero_()
    noble_fx.reset_parameters(made)
    assert same(values(made.blocks[0].fc1.base), before)
    assert made.blocks[0].fc1.noble.up.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_they_follow_the_weight_in_dtype_mode_and_what_learns(kind):
    plain = tiny().to(torch.bfloat16).eval()
    plain.blocks[0].fc1.weight.requires_grad_(False)
    made = reformed(kind, plain)
    for fqn, base in named_bases(made).items():
        assert base.dtype is torch.bfloat16
        assert not base.training
        assert {p.requires_grad for p in base.parameters()} == {fqn != "blocks.0.fc1"}


@pytest.mark.parametrize("kind", KINDS)
def test_fully_shard_takes_a_model_with_them(kind):
    with one_rank() as mesh:
        expected = reformed(kind)
        sharded = fsdp2(reformed(kind), mesh)
        expected(tokens()).sum().backward()
        torch.testing.assert_close(sharded.eval()(tokens()), expected.eval()(tokens()))
        sharded(tokens()).sum().backward()
        grads = [p.grad for base in named_bases(sharded).values() for p in base.parameters()]
        assert all(grad is not None for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_from_meta_they_are_sharded_and_drawn(kind):
    expected = reformed(kind, init_base=True)
    with torch.device("meta"):
        plain = Tiny()
    with one_rank() as mesh:
        made = fsdp2(reformed(kind, plain, init_base=True), mesh)
        made.to_empty(device="cpu")
        for module in made.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        noble_fx.reset_parameters(made)
        for fqn, base in named_bases(made).items():
            whole = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in base.state_dict().items()}
            assert same(whole, values(named_bases(expected)[fqn]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_draws_its_w_as_its_class_does(kind):
    made = reformed(kind).blocks[0].fc1
    before = made.weight.detach().clone()
    torch.manual_seed(5)
    made.reset_parameters()
    torch.manual_seed(5)
    plain = nn.Linear(16, 32)
    torch.testing.assert_close(made.bias, plain.bias)
    filled = copy.deepcopy(made.base)
    filled.fill(plain.weight)
    torch.testing.assert_close(made.weight, filled.merged())
    assert not torch.allclose(made.weight, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_them_learns(kind):
    made = reformed(kind, guide=0.5)
    optimizer = torch.optim.AdamW(noble_fx.param_groups(made, lr=3e-3, weight_decay=0.1))
    x, losses = tokens(), []
    for step in range(40):
        noble_fx.step(made, step / 40, generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(made(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not any("alpha" in name for name in made.state_dict())

"""The transformed model is the base model plus branches: parameters, copies, modes, and the way back."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError, NobleConfig, NobleLinear
from noble_fx.transform import named_branches
from tests.models import Gamma, Tiny, loud, silent, tiny, tokens, transformed
from tests.samples import ACTIVATIONS, long

CAPTURES = ["fx", "modules"]


@pytest.fixture(params=CAPTURES)
def capture(request):
    return request.param


def test_base_keys_and_values_are_untouched(capture):
    base = tiny().state_dict()
    state = noble_fx.transform(tiny(), rank=4, capture=capture).state_dict()
    assert [key for key in state if ".noble." not in key] == list(base)
    assert all(torch.equal(state[key], value) for key, value in base.items())
    assert "blocks.0.q_proj.noble.down" in state
    assert "blocks.0.q_proj.noble.act.first.frequency" in state


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_u_it_is_the_original_bit_for_bit(capture, fuse, dtype):
    base = tiny().to(dtype)
    model = silent(noble_fx.transform(tiny().to(dtype), rank=4, capture=capture, fuse=fuse))
    assert torch.equal(model(tokens()), base(tokens()))


def test_disabled_is_the_base_model_exactly_and_only_inside(capture):
    base, model = tiny()(tokens()), transformed(capture)
    before = model(tokens())
    with noble_fx.disabled(model):
        assert torch.equal(model(tokens()), base)
        with noble_fx.disabled(model):
            assert torch.equal(model(tokens()), base)
        assert torch.equal(model(tokens()), base)
    assert torch.equal(model(tokens()), before)
    with pytest.raises(RuntimeError, match="inside"), noble_fx.disabled(model):
        raise RuntimeError("inside")
    assert torch.equal(model(tokens()), before)


def test_remove_gives_the_plain_model_back(capture):
    base, model = tiny(), transformed(capture)
    assert not torch.equal(model(tokens()), base(tokens()))
    assert noble_fx.remove(model) is model
    assert torch.equal(model(tokens()), base(tokens()))
    assert list(model.state_dict()) == list(base.state_dict())
    assert type(model.blocks[0].fc1) is nn.Linear
    with pytest.raises(ConfigError, match="carries no branches"):
        noble_fx.remove(model)


def test_transform_after_remove(capture):
    model = noble_fx.remove(transformed("modules"))
    again = loud(noble_fx.transform(model, rank=4, seed=0, capture=capture))
    assert torch.equal(again(tokens()), transformed(capture)(tokens()))


def test_transforming_twice_is_refused(capture):
    model = transformed(capture)
    with pytest.raises(ConfigError, match=r"already carries branches .first: 'blocks.0.q_proj.noble'.*noble_fx.remove"):
        noble_fx.transform(model, rank=4)


@pytest.mark.parametrize(
    ("act", "capture"),
    [
        *((name, "modules") if name in ACTIVATIONS else long(name, "modules") for name in noble_fx.activation_names()),
        *(("cosnet", "fx"), ("swiglu_net", "fx")),
    ],
)
def test_every_activation_trains_through_the_operator(act, capture):
    model = loud(noble_fx.transform(tiny(), rank=4, act=act, capture=capture, preset="reference", seed=0))
    assert {site.unfused for site in noble_fx.sites(model)} == {""}
    eager = loud(noble_fx.transform(tiny(), rank=4, act=act, capture=capture, preset="reference", seed=0, fuse=False))
    truth = copy.deepcopy(eager).double()
    for one in (model, eager, truth):
        one(tokens()).sum().backward()
    torch.testing.assert_close(model(tokens()).double(), truth(tokens()), rtol=1e-4, atol=1e-4)
    exact = dict(truth.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad.double(), exact[name].grad, rtol=2e-3, atol=2e-3, msg=name)
        if ".noble." in name and act != "relu":
            assert parameter.grad.abs().sum() > 0, name


def test_a_dropout_activation_stays_eager_with_the_reason(capture):
    model = noble_fx.transform(tiny(), rank=4, act=lambda rank: nn.Dropout(0.5), capture=capture)
    assert all("draws random numbers" in site.unfused for site in noble_fx.sites(model) if site.selected)
    model.train()
    assert model(tokens()).shape == (2, 5, 20)
    assert "eager branch at 12 sites: draws random numbers" in str(noble_fx.explain(model))


def test_seeds_depend_on_the_layer_alone(capture):
    def state(**settings):
        torch.manual_seed(5)
        return noble_fx.transform(tiny(), rank=4, capture=capture, **settings).state_dict()

    one, other = state(seed=3), state(seed=3, select="fc1")
    key = "blocks.1.fc1.noble.up"
    assert torch.equal(one[key], other[key])
    assert not torch.equal(one[key], one["blocks.0.fc1.noble.up"])
    assert not torch.equal(one[key], state(seed=4)[key])
    assert torch.equal(one[key], state(seed=3)[key])


def test_a_seed_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    model = tiny()
    before = torch.get_rng_state()
    noble_fx.transform(model, rank=4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_init_base_redraws_only_the_chosen_layers():
    base, model = tiny(width=64), tiny(width=64)
    noble_fx.transform(model, rank=4, init_base=True, seed=0)
    weight = model.blocks[0].fc1.weight
    assert weight.std().item() == pytest.approx(0.5 * 64**-0.5, rel=0.05)
    assert torch.equal(model.blocks[0].fc1.bias, torch.zeros(128))
    assert torch.equal(model.head.weight, base.head.weight)
    assert torch.equal(model.blocks[0].norm.weight, base.blocks[0].norm.weight)


def test_config_and_keywords():
    config = NobleConfig(rank=4, act="gelu")
    sites = noble_fx.transform(tiny(), config=config, rank=2, dry_run=True)
    assert {site.rank for site in sites if site.selected} == {2}
    with pytest.raises(ConfigError, match="'ranks' is not a setting"):
        noble_fx.transform(tiny(), ranks=4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_work_with_callables_in_the_config(capture, copied):
    model = loud(noble_fx.transform(tiny(), rank=4, act=lambda r: nn.Softplus(), select=lambda s: "fc" in s.fqn))
    assert torch.equal(copied(model)(tokens()), model(tokens()))


def test_dtypes_and_devices_follow_the_layer(capture):
    model = transformed(capture).to(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(tokens()).dtype == torch.bfloat16
    direct = noble_fx.transform(tiny().to(torch.bfloat16), rank=4, capture=capture)
    assert {p.dtype for p in direct.parameters()} == {torch.bfloat16}


def test_meta_then_to_empty_then_reset(capture):
    with torch.device("meta"):
        model = Tiny()
    model = noble_fx.transform(model, rank=4, seed=0, capture=capture).eval()
    assert all(p.is_meta for p in model.parameters())
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    noble_fx.reset_branches(model)
    model.load_state_dict(tiny().state_dict(), strict=False)
    assert torch.equal(loud(model)(tokens()), transformed(capture)(tokens()))


def test_reset_parameters_of_every_module_is_enough_for_sharded_initialisation(capture):
    model = transformed(capture)
    with torch.no_grad():
        for branch in named_branches(model).values():
            for parameter in branch.parameters():
                parameter.fill_(float("nan"))
    for module in model.modules():  # what FSDP and torchtitan do after to_empty
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_mode_of_the_layer_is_kept(capture):
    assert noble_fx.transform(tiny().eval(), rank=4, capture=capture).training is False
    model = noble_fx.transform(tiny().train(), rank=4, capture=capture)
    assert model.training
    assert model.blocks[0].fc1.noble.training


def test_hooks_and_optimizers_made_before_keep_working():
    model = tiny()
    seen = []
    model.blocks[0].fc1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layer = model.blocks[0].fc1
    noble_fx.transform(model, rank=4)
    assert model.blocks[0].fc1 is layer
    before = layer.weight.clone()
    model(tokens()).sum().backward()
    optimizer.step()
    assert seen == [(2, 5, 32)]
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("capture", "place", "name"),
    [
        ("fx", "noble_fx.captures.base", "run_passes"),
        ("export", "noble_fx.captures.base", "run_passes"),
        ("modules", "noble_fx.transform", "keep_from_fast_path"),
        ("fx", "noble_fx.transform", "draw_base"),
    ],
)
def test_a_failure_half_way_puts_everything_back(capture, place, name, error, monkeypatch):
    model, examples = tiny(), {"example_inputs": (tokens(),)} if capture == "export" else {}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes, calls = set(vars(model)), []
    once = getattr(sys.modules[place], name)

    def fail(*args, **settings):
        calls.append(args)
        if len(calls) == 1:
            once(*args, **settings)  # something has changed by then
            raise error("half way")
        return once(*args, **settings)

    monkeypatch.setattr(sys.modules[place], name, fail)
    with pytest.raises(error, match="half way"):
        noble_fx.transform(model, rank=4, capture=capture, init_base=True, **examples)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(model) is Tiny
    assert set(vars(model)) == attributes
    assert type(model.blocks[0].fc1) is nn.Linear


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_users_containers_stay_the_same_objects_under_export(dry_run):
    model, shared = tiny(layers=1), {"steps": [1]}
    model.shared = model.blocks[0].shared = shared
    noble_fx.transform(model, rank=2, capture="export", example_inputs=(tokens(),), dry_run=dry_run)
    assert model.shared is shared
    assert model.blocks[0].shared is shared


def test_the_transformer_encoders_fast_path_does_not_pass_the_branches_by():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        base = encoder(x)
    model = loud(noble_fx.transform(encoder, rank=4, select="linear"))
    with torch.no_grad():
        assert (model(x) - base).abs().max() > 0.01
    noble_fx.remove(model)
    assert encoder.layers[0].activation_relu_or_gelu == 1
    with torch.no_grad():
        assert torch.equal(model(x), base)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant):
    model = transformed("modules")
    x = torch.randn(2, 5, 16, requires_grad=True)
    plain = torch.autograd.grad(model.blocks[0](x).sum(), x)[0]
    kept = torch.utils.checkpoint.checkpoint(model.blocks[0], x, use_reentrant=use_reentrant)
    kept.sum().backward()
    torch.testing.assert_close(x.grad, plain)


@pytest.mark.parametrize("dynamic", [long(False), True])
def test_torch_compile_gives_the_same(capture, dynamic):
    model = loud(noble_fx.transform(tiny(layers=1), rank=4, capture=capture, select="all"))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    truth, found = model(tokens()), compiled(tokens())
    torch.testing.assert_close(found, truth)
    wanted = torch.autograd.grad(truth.sum(), list(model.parameters()), allow_unused=True)
    got = torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(compiled(tokens(3, 4)), model(tokens(3, 4)))


def test_a_users_torch_export_is_plain_aten(capture):
    program = torch.export.export(transformed(capture), (tokens(),), strict=False)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert not any("noble_fx" in str(target) for target in targets)
    assert targets.count(torch.ops.aten.cos.default) == 24
    torch.testing.assert_close(program.module()(tokens()), transformed(capture)(tokens()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"act": Gamma}, r"fuse='require': 'blocks.0.*' would have no generated kernels on a GPU: .*lgamma"),
        ({"act": lambda rank: torch.nn.Dropout(0.5)}, r"fuse='require': 'blocks.0.*random numbers"),
    ],
)
def test_required_kernels_that_cannot_be_are_an_error_and_the_model_is_as_it_was(settings, message):
    model = tiny()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(ConfigError, match=message):
        noble_fx.transform(model, rank=4, fuse="require", **settings)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert all(type(m) is not NobleLinear for m in model.modules())


def test_required_kernels_that_can_be():
    model = noble_fx.transform(tiny(), rank=4, fuse="require")
    assert all(not site.unfused for site in noble_fx.sites(model) if site.selected)
    with pytest.raises(ConfigError, match=r"no kernels for torch\.float64"):
        noble_fx.transform(tiny().double(), rank=4, fuse="require")


class ReadsTheWeight(nn.Module):
    """Multiplies with a layer's weight itself, as Mamba does with that of dt_proj."""

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.called(x) @ self.read.weight


def test_a_branch_that_the_model_goes_past_is_named_after_a_backward():
    model = noble_fx.transform(ReadsTheWeight(), rank=2, capture="modules")

    def without_effect():
        return [site.fqn for site in noble_fx.sites(model) if "; without effect: the last backward" in site.reason]

    assert without_effect() == []
    model(torch.randn(3, 8)).sum().backward()
    assert without_effect() == ["read"]
    assert "without effect" in str(noble_fx.explain(model))
    model.zero_grad()
    assert without_effect() == []
    model.read.noble.requires_grad_(False)
    model(torch.randn(3, 8)).sum().backward()
    assert without_effect() == []


def test_sites_of_a_model_that_was_parametrized_afterwards():
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=2, capture="modules")
    nn.utils.parametrizations.weight_norm(model[0])
    model(torch.randn(3, 8)).sum().backward()
    assert "without effect" not in str(noble_fx.explain(model))


class Deciding(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(rank))

    def forward(self, h):
        return h * self.gain if h.sum() > 0 else -h


def test_a_sigma_that_decides_on_values_is_eager_and_no_error():
    model = tiny()
    random = torch.get_rng_state()
    noble_fx.transform(model, rank=4, act=Deciding, seed=0, select=["blocks.0.fc1"])
    assert torch.equal(torch.get_rng_state(), random)
    assert "value" in model.blocks[0].fc1.noble.unfused
    assert torch.isfinite(model(tokens())).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": 3}, r"config=3 must be None or a NobleConfig"),
        ({"dry_run": "no"}, "dry_run='no' must be True or False"),
        ({"example_inputs": 3}, "example_inputs=3 must be a tensor, or a tuple or list of inputs"),
        ({"example_inputs": "x"}, "example_inputs='x' must be"),
        ({"example_kwargs": ["x"]}, r"example_kwargs=\['x'\] must be a dictionary"),
        ({"example_kwargs": {1: 2}}, r"example_kwargs={1: 2} must be a dictionary"),
        ({"rank": torch.zeros(2, 2)}, "rank=tensor.* is not a rank"),
    ],
)
def test_arguments_that_cannot_be(settings, message):
    model = tiny()
    with pytest.raises(ConfigError, match=message) as refused:
        noble_fx.transform(model, **settings)
    assert str(refused.value).isprintable()
    assert not named_branches(model)


@pytest.mark.parametrize("capture", ["modules", "fx"])
def test_what_was_compiled_before_sees_branches_come_and_go(capture):
    torch._dynamo.reset()
    model, x = tiny(), tokens()
    compiled = torch.compile(model, backend="eager")
    base = compiled(x)
    loud(noble_fx.transform(model, rank=4, seed=0, capture=capture))
    assert not torch.allclose(compiled(x), base)
    torch.testing.assert_close(compiled(x), model(x))
    noble_fx.remove(model)
    torch.testing.assert_close(compiled(x), base)


def test_parameters_are_drawn_again_where_there_are_branches_with_values():
    with pytest.raises(ConfigError, match="carries no branches"):
        noble_fx.reset_parameters(tiny())
    with pytest.raises(ConfigError, match=r"takes an nn.Module"):
        noble_fx.reset_parameters(None)
    with torch.device("meta"):
        model = type(tiny())()
    with pytest.raises(ConfigError, match=r"on the meta device; call model.to_empty"):
        noble_fx.reset_parameters(noble_fx.transform(model, rank=2))


# --- scope="block" ---------------------------------------------------------------------------------------------------


def around(**settings):
    return noble_fx.transform(tiny(), rank=4, seed=0, scope="block", **settings)


def test_one_branch_around_each_block():
    model, plain = loud(around()).double().eval(), tiny().double().eval()
    for block, other in zip(plain.blocks, model.blocks, strict=True):
        block.register_forward_hook(lambda _, args, y, branch=other.noble: y + branch(*args))
    torch.testing.assert_close(model(tokens()), plain(tokens()))
    assert [(s.fqn, s.kind, s.role, s.rank, s.selected) for s in noble_fx.sites(model)] == [
        (f"blocks.{i}", "Block", "block", 4, True) for i in range(2)
    ]
    assert {s.unfused for s in noble_fx.sites(model)} == {
        "around a whole block: there is no single linear map to be one operator with"
    }
    assert "2 of 2 blocks carry a branch" in str(noble_fx.explain(model))


def test_branches_around_blocks_come_off_and_out():
    model, plain = loud(around()).eval(), tiny().eval()
    with noble_fx.disabled(model):
        assert torch.equal(model(tokens()), plain(tokens()))
    assert not torch.equal(model(tokens()), plain(tokens()))
    assert noble_fx.remove(model).state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model(tokens()), plain(tokens()))
    assert type(model.blocks[0]) is type(plain.blocks[0])


def test_blocks_are_chosen_like_layers():
    def ranks(**settings):
        return [site.rank for site in noble_fx.transform(tiny(layers=3), scope="block", dry_run=True, **settings)]

    assert ranks(rank=0.5, select=r"\.[01]$", rank_pattern={"1": 3}) == [8, 3, 0]
    assert ranks(rank=4, select=["blocks.2"]) == [0, 0, 4]
    assert ranks(rank=4, select=lambda site: site.fqn != "blocks.2", exclude=["blocks.0"]) == [0, 4, 0]
    model = tiny(layers=3)
    chosen = noble_fx.transform(model, rank="4%", scope="block", dry_run=True)
    assert 0 < sum(site.params for site in chosen) <= 0.04 * sum(p.numel() for p in model.parameters())


def test_what_cannot_be_around_a_block_names_the_way_out():
    for settings, message in (
        ({"select": ["blocks.7"]}, "'blocks.7', which is no repeated block of this model; nearest: 'blocks"),
        ({"exclude": "q_proj"}, "exclude='q_proj' matches no repeated block"),
        ({"rank": 16}, "leaves no block to augment: 2 × rank 16 is not below"),
        ({"fuse": "require"}, "would have no generated kernels on a GPU: around a whole block"),
    ):
        with pytest.raises(ConfigError, match=message):
            noble_fx.transform(tiny(), **{"rank": 4, "scope": "block", **settings})
    with pytest.raises(ConfigError, match="no repeated blocks; scope='linear'") as error:
        noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=2, scope="block")
    assert error.value.advice == {"scope": "linear"}
    with pytest.raises(ConfigError, match="already carries branches"):
        noble_fx.transform(around(), rank=2)


def test_branches_around_blocks_learn_and_are_saved(tmp_path):
    model = around()
    groups = noble_fx.param_groups(model, lr=1e-2)
    up = next(group for group in groups if any(p is model.blocks[0].noble.up for p in group["params"]))
    assert up["lr"] == pytest.approx(1e-2 * (16 / 4) ** 0.6)
    optimizer, losses = torch.optim.AdamW(groups), []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(tokens()).flatten(0, 1), tokens().flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    noble_fx.save(model.eval(), tmp_path / "saved")
    assert torch.equal(noble_fx.load(tiny(), tmp_path / "saved").eval()(tokens()), model(tokens()))
    torch.testing.assert_close(noble_fx.fold(model)(tokens()), model(tokens()))


def test_branches_around_blocks_are_drawn_again_as_they_were():
    model, again = around(), around()
    with torch.no_grad():
        again.blocks[0].noble.up.zero_()
    noble_fx.reset_branches(again)
    assert torch.equal(model.blocks[0].noble.up, again.blocks[0].noble.up)
    with torch.device("meta"):
        meta = noble_fx.transform(type(tiny())(), rank=4, seed=0, scope="block")
    meta.to_empty(device="cpu").load_state_dict(tiny().state_dict(), strict=False)
    noble_fx.reset_branches(meta)
    assert torch.equal(meta.eval()(tokens()), model.eval()(tokens()))


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_fast_path_of_an_encoder_does_not_pass_branches_by(batch_first):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first), 2).double().eval()
    plain, x = copy.deepcopy(encoder), torch.randn(2, 5, 16, dtype=torch.float64)
    model = loud(noble_fx.transform(encoder, rank=4, scope="block"))
    expected = x
    with torch.no_grad():
        for layer, other in zip(plain.layers, model.layers, strict=True):
            expected = layer(expected) + other.noble(expected)
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_branches_around_blocks_are_compiled(backend):
    model = loud(around()).eval()
    torch.testing.assert_close(torch.compile(model, backend=backend)(tokens()), model(tokens()))


def test_ranks_and_places_of_branches_around_blocks_change():
    model = loud(around()).eval()
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, lr=1e-2))
    before = model(tokens())
    noble_fx.set_rank(model, 6, optimizer=optimizer)
    torch.testing.assert_close(model(tokens()), before)
    noble_fx.remove_branches(model, ["blocks.1"], optimizer=optimizer)
    assert [site.selected for site in noble_fx.sites(model)] == [True, False]
    without = model(tokens())
    (site,) = noble_fx.add_branches(model, ["blocks.1"], rank=5, optimizer=optimizer)
    assert (site.role, site.rank) == ("block", 5)
    torch.testing.assert_close(model(tokens()), without)

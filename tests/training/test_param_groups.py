import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import noble_fx
from noble_fx import ConfigError
from noble_fx.branches.base import Rate
from noble_fx.transform import named_branches
from noble_fx.wrappers import own_name
from tests.models import tiny, tokens, transformed
from tests.one_rank import first_of_two, fsdp1, fsdp2


def by_parameter(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)  # each once
    return found


# [K, N] of fc1 is [16, 32], so min(K, N) / r = 4 at rank 4.
@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper", {"up": 4**0.6, "act.mixer.weight": 4**0.45, "act.first.frequency": 3, "act.second.phase": 5}),
        ("reference", {"up": 4**0.4, "act.mixer.weight": 4**0.5, "act.first.frequency": 2, "act.second.phase": 4}),
        ("flat", {"up": 1, "act.mixer.weight": 1, "act.first.frequency": 1, "act.second.phase": 1}),
    ],
)
def test_multipliers_are_the_presets(preset, expected):
    model = noble_fx.transform(tiny(), rank=4, preset=preset)
    found = by_parameter(model, noble_fx.param_groups(model, lr=0.5, weight_decay=0.1))
    for name, multiplier in expected.items():
        assert found[f"blocks.0.fc1.noble.{name}"]["lr"] == pytest.approx(0.5 * multiplier)
    assert found["blocks.0.fc1.noble.down"]["lr"] == 0.5
    assert found["blocks.0.fc1.weight"]["lr"] == 0.5
    if preset == "reference":
        assert found["blocks.0.fc1.noble.down_bias"]["lr"] == 0.5
        assert found["blocks.0.fc1.noble.act.mixer.bias"]["lr"] == 0.5


def test_weight_decay_of_frequency_and_phase():
    paper = noble_fx.transform(tiny(), rank=4)
    found = by_parameter(paper, noble_fx.param_groups(paper, lr=1.0, weight_decay=0.1))
    assert found["blocks.0.fc1.noble.act.first.phase"]["weight_decay"] == 0
    assert found["blocks.0.fc1.noble.up"]["weight_decay"] == 0.1
    assert found["blocks.0.fc1.bias"]["weight_decay"] == 0
    assert found["blocks.0.norm.weight"]["weight_decay"] == 0
    assert found["embed.weight"]["weight_decay"] == 0.1
    reference = noble_fx.transform(tiny(), rank=4, preset="reference")
    found = by_parameter(reference, noble_fx.param_groups(reference, lr=1.0, weight_decay=0.1))
    assert found["blocks.0.fc1.noble.act.first.phase"]["weight_decay"] == 0.1


@pytest.mark.parametrize("capture", ["fx", "modules"])
def test_every_parameter_once_and_the_optimizer_takes_them(capture):
    model = transformed(capture)
    groups = noble_fx.param_groups(model, lr=1e-3, weight_decay=0.1)
    assert by_parameter(model, groups).keys() == dict(model.named_parameters()).keys()
    optimizer = torch.optim.AdamW(groups)
    model(tokens()).sum().backward()
    optimizer.step()


def test_a_plain_model_gets_the_same_base_groups():
    groups = noble_fx.param_groups(tiny(), lr=1e-3, weight_decay=0.1)
    assert [group["name"] for group in groups] == ["base matrices", "base vectors"]


def test_multipliers_survive_deepcopy_and_assignment():
    model = copy.deepcopy(transformed("modules"))
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    found = by_parameter(model, noble_fx.param_groups(model, lr=1.0))
    assert found["blocks.0.fc1.noble.act.first.phase"]["lr"] == 5


def test_with_muon_only_hidden_matrices_of_the_base_go_to_it():
    model = transformed("modules")
    found = by_parameter(model, noble_fx.param_groups(model, lr=1.0, muon=True))
    muon = {name for name, group in found.items() if group["use_muon"]}
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    assert muon == {f"blocks.{i}.{name}.weight" for i in range(2) for name in names}


def test_own_base_groups_are_taken_as_they_are():
    model = transformed("modules")
    own = [p for name, p in model.named_parameters() if ".noble." not in name]
    groups = noble_fx.param_groups(model, lr=1.0, base=[{"params": own[:3], "lr": 7.0}, *own[3:]])
    assert groups[0] == {"params": own[:3], "lr": 7.0, "lr_scale": 7.0}
    assert groups[1]["params"] == own[3:]
    assert by_parameter(model, groups).keys() == dict(model.named_parameters()).keys()


def test_keys_of_another_library_stay_on_the_base_groups_that_have_them():
    model = noble_fx.transform(tiny(), rank=4, seed=0)
    own = [(name, p) for name, p in model.named_parameters() if ".noble." not in name]
    keys = {"rank": 8, "update_proj_gap": 200, "proj_type": "std"}
    matrices = {"params": [p for _, p in own if p.ndim == 2], **keys}
    given = dict(matrices)
    groups = noble_fx.param_groups(model, lr=1.0, base=[matrices, {"params": [p for _, p in own if p.ndim != 2]}])
    assert keys.items() <= groups[0].items()
    assert not any(keys.keys() & group.keys() for group in groups[1:])
    assert matrices == given  # the user's own group is not written to
    optimizer = torch.optim.SGD(groups)
    assert not any(keys.keys() & group.keys() for group in optimizer.param_groups[1:])


def test_a_base_group_without_a_rate_has_the_rate_that_was_asked_for_and_not_the_optimizers():
    model = noble_fx.transform(tiny(), rank=4, seed=0)
    own = [p for name, p in model.named_parameters() if ".noble." not in name]
    groups = noble_fx.param_groups(model, lr=0.5, base=[{"params": own[:2], "rank": 8}, {"params": own[2:]}])
    for group in torch.optim.AdamW(groups, lr=1e-3).param_groups:
        assert group["lr"] == 0.5 * group["lr_scale"]


def test_base_groups_with_branch_parameters_are_refused():
    model = transformed("modules")
    with pytest.raises(ConfigError, match=r"optimised twice.*'\.noble\.'"):
        noble_fx.param_groups(model, lr=1.0, base=model.parameters())


def test_frozen_parameters_are_left_out():
    model = transformed("modules")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".noble." in name)
    found = by_parameter(model, noble_fx.param_groups(model, lr=1.0))
    assert all(".noble." in name for name in found)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        noble_fx.param_groups(model, lr=1.0)


def test_roles_inside_an_activation_of_ones_own():
    class Mine(nn.Module):
        def __init__(self, rank):
            super().__init__()
            self.mix, self.gain = nn.Linear(rank, rank), nn.Parameter(torch.ones(rank))

        def forward(self, h):
            return torch.tanh(self.mix(h)) * self.gain

    model = noble_fx.transform(tiny(), rank=4, act=Mine, select=["blocks.0.fc1"])
    branch = named_branches(model)["blocks.0.fc1"]
    roles = [role for role, _, _ in branch.parameter_roles()]
    assert roles == ["down", "up", "other", "mixer", "other"]
    assert branch.rate("other") == Rate(1.0, decay=True)


def test_training_learns_more_than_noise():
    # Inputs through a fixed nonlinear map: the branch must help a linear layer beyond what W alone can do.
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    target = torch.cos(x @ torch.randn(8, 8))
    losses = {}
    for name in ("plain", "noble"):
        torch.manual_seed(1)
        model: nn.Module = nn.Linear(8, 8)
        if name == "noble":
            model = noble_fx.transform(nn.Sequential(model), rank=7, seed=0)
        optimizer = torch.optim.Adam(noble_fx.param_groups(model, lr=1e-2))
        for _ in range(150):
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["noble"] < 0.6 * losses["plain"]


@pytest.mark.parametrize("put", [parametrizations.weight_norm, lambda m, n: prune.l1_unstructured(m, n, 0.5)])
def test_what_is_behind_up_learns_as_up(put):
    model = noble_fx.transform(tiny(), rank=4)
    put(model.blocks[0].fc1.noble, "up")
    found = by_parameter(model, noble_fx.param_groups(model, lr=1.0))
    assert found.keys() == dict(model.named_parameters()).keys()
    behind = [group for name, group in found.items() if "fc1.noble.parametrizations.up" in name or "up_orig" in name]
    assert behind
    assert [group["lr"] for group in behind] == [pytest.approx(4**0.6)] * len(behind)


def test_a_parameter_that_no_role_names_is_an_error_and_not_left_out():
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=2)
    model[0].noble.gate = nn.Linear(2, 2, bias=False)
    with pytest.raises(ConfigError, match=r"'gate.weight' of the branch at '0' has no role"):
        noble_fx.param_groups(model, lr=1e-3)
    model[0].noble.gate.requires_grad_(False)
    noble_fx.param_groups(model, lr=1e-3)


def test_a_copy_whose_branches_lost_their_class_is_refused():
    program = torch.export.export(transformed("modules"), (tokens(),))
    lost = torch.export.unflatten(program)
    with pytest.raises(ConfigError, match=r"'blocks.0.q_proj.noble.down' is a branch's parameter by.*afterwards"):
        noble_fx.param_groups(lost, lr=1.0)
    lost.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        noble_fx.param_groups(lost, lr=1.0)
    own = nn.Sequential()
    own.noble = nn.Linear(4, 4)  # a user's own word
    assert len(noble_fx.param_groups(own, lr=1.0)) == 2


@pytest.mark.long
def test_stages_that_a_tracer_cut_are_refused_and_those_cut_by_hand_are_not():
    from torch.distributed.pipelining import SplitPoint, pipeline

    model = transformed("modules")
    pipe = pipeline(model, (tokens(),), split_spec={"blocks.1": SplitPoint.BEGINNING})
    stages = [pipe.get_stage_module(i) for i in range(2)]
    torch.testing.assert_close(stages[1](stages[0](tokens())), model(tokens()))
    for stage in stages:
        with pytest.raises(ConfigError, match=r"is a branch's parameter by its name, and no branch is behind it"):
            noble_fx.param_groups(stage, lr=1.0)
    first = nn.Sequential(model.embed, model.blocks[0])
    whole = by_parameter(model, noble_fx.param_groups(model, lr=1.0))
    for name, group in by_parameter(first, noble_fx.param_groups(first, lr=1.0)).items():
        own = name.replace("0.", "embed.", 1) if name.startswith("0.") else name.replace("1.", "blocks.0.", 1)
        assert group["lr"] == whole[own]["lr"]


def test_muon_takes_the_matrices_of_gpt2_and_of_an_attention():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    model = noble_fx.transform(transformers.GPT2LMHeadModel(config), rank=4)
    found = by_parameter(model, noble_fx.param_groups(model, lr=1.0, muon=True))
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert {n for n, g in found.items() if g["use_muon"]} == {f"transformer.h.0.{name}.weight" for name in names}
    encoder = noble_fx.transform(nn.TransformerEncoderLayer(16, 2, 32), rank=4, select="all")
    found = by_parameter(encoder, noble_fx.param_groups(encoder, lr=1.0, muon=True))
    matrices = {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    assert {n for n, g in found.items() if g["use_muon"]} == matrices


@pytest.mark.parametrize("muon", [False, True])
def test_every_group_has_its_multiplier(muon):
    groups = noble_fx.param_groups(transformed("modules"), lr=0.5, muon=muon)
    assert all(group["lr"] == pytest.approx(0.5 * group["lr_scale"]) for group in groups)
    assert {group["lr_scale"] for group in groups if group["name"].startswith("base")} == {1.0}
    assert len({group["lr_scale"] for group in groups}) > 3


# --- shards ----------------------------------------------------------------------------------------------------------


def roles(groups: list[dict], model: nn.Module) -> dict[str, str]:
    names = {id(p): own_name(name, model) for name, p in model.named_parameters()}
    return {names[id(p)]: group["name"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("shard", [fsdp1, fsdp2])
def test_shards_learn_as_what_they_were_cut_from(shard):
    plain = noble_fx.transform(tiny(), rank=4)
    expected = roles(noble_fx.param_groups(plain, lr=1.0, muon=True), plain)
    with first_of_two() as mesh:
        model = noble_fx.transform(tiny(), rank=4)
        model = shard(model, mesh) if shard is fsdp2 else shard(model)
        assert roles(noble_fx.param_groups(model, lr=1.0, muon=True), model) == expected


def test_one_flat_parameter_of_base_and_branches_is_refused():
    with first_of_two():
        model = fsdp1(noble_fx.transform(tiny(), rank=4), use_orig_params=False)
        with pytest.raises(ConfigError, match=r"holds base and branches in one; .*use_orig_params=True"):
            noble_fx.param_groups(model, lr=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": "fast"}, "lr='fast' must be a finite number ≥ 0"),
        ({"lr": float("nan")}, "lr=nan must be"),
        ({"weight_decay": None}, "weight_decay=None must be"),
        ({"muon": "no"}, "muon='no' must be True or False"),
        ({"base": 3}, "base holds 3, which is neither a parameter nor a group"),
        ({"base": [{"lr": 0.1}]}, "base holds {'lr': 0.1}, which is neither"),
        ({"base": [{"params": [], "lr": "x"}]}, "lr of a group in base='x' must be"),
        ({"base": tiny().named_parameters()}, r"base holds \('embed.weight', .*, which is neither"),
    ],
)
def test_arguments_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        noble_fx.param_groups(transformed(), **{"lr": 0.1, **settings})


def test_a_rate_in_a_tensor_is_one():
    groups = noble_fx.param_groups(transformed(), torch.tensor(0.1))
    assert all(isinstance(group["lr"], torch.Tensor) for group in groups)


# --- Muon ------------------------------------------------------------------------------------------------------------


def test_muon_has_a_rate_of_its_own_in_the_same_ratio_as_the_others():
    groups = noble_fx.param_groups(transformed("modules"), lr=0.01, muon=True, muon_lr=0.2)
    rates = {group["name"]: (group["lr"], group["lr_scale"]) for group in groups}
    assert rates["base matrices (Muon)"] == (0.2, 20.0)
    assert rates["base matrices"] == (0.01, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"muon_lr": 0.1}, "muon_lr=0.1 .* no groups for Muon; muon=True"),
        ({"muon": True, "muon_lr": 0.1, "base": []}, "groups of your own in base have rates"),
        ({"muon": True, "muon_lr": -1.0}, "muon_lr=-1.0 must be a finite number"),
    ],
)
def test_a_rate_for_no_group_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        noble_fx.param_groups(transformed("modules"), lr=1.0, **given)


def test_where_muon_would_get_nothing_a_warning_says_so():
    model = transformed("modules")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".noble." in name)
    with pytest.warns(UserWarning, match="no group is Muon's"):
        groups = noble_fx.param_groups(model, lr=1.0, muon=True)
    assert not any(group["use_muon"] for group in groups)


def test_a_convolution_is_not_for_muon():
    model = noble_fx.transform(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 8)), rank=2, select="all")
    found = by_parameter(model, noble_fx.param_groups(model, lr=1.0, muon=True))
    assert {name for name, group in found.items() if group["use_muon"]} <= {"2.weight"}
    assert not found["0.weight"]["use_muon"]


def test_what_base_leaves_out_is_told():
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rank=2)
    with pytest.warns(UserWarning, match=r"3 parameters that require gradients are in no group \('0.bias'"):
        noble_fx.param_groups(model, lr=1.0, base=[model[0].weight])
    own = [p for name, p in model.named_parameters() if ".noble." not in name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noble_fx.param_groups(model, lr=1.0, base=[{"params": own, "use_muon": True}], muon=True)
        noble_fx.param_groups(model, lr=1.0, base=[{"params": own}], muon=True)

"""Branches come before wrappers: what would not know of them is refused, and what is right in either order is not."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.attach.unwrapped import check_unwrapped, same_on_every_rank
from noble_fx.distributed import is_distributed
from noble_fx.transform import named_branches
from noble_fx.wrappers import own_name
from tests.models import loud, tiny, tokens, transformed
from tests.one_rank import PARALLEL, first_of_two, fsdp1, fsdp2, one_rank, tensor_parallel


@pytest.mark.parametrize("name", PARALLEL)
def test_a_model_that_is_parallel_already_is_refused_and_as_it_was(name):
    with one_rank() as mesh:
        model = PARALLEL[name](tiny(), mesh)
        before = {fqn: id(module) for fqn, module in model.named_modules()}
        with pytest.raises(CaptureError, match=rf"{name}.*noble_fx.transform\(model\) first"):
            noble_fx.transform(model, rank=4)
        assert {fqn: id(module) for fqn, module in model.named_modules()} == before
        assert not named_branches(model)


@pytest.mark.parametrize("name", PARALLEL)
def test_branches_are_not_taken_out_of_a_model_that_is_parallel(name):
    with one_rank() as mesh:
        model = PARALLEL[name](transformed(), mesh)
        with pytest.raises(CaptureError, match=rf"the model is wrapped by {name}, .* branches are gone: unwrap"):
            noble_fx.remove(model)
        assert len(named_branches(model)) == 12


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel])
def test_other_wrappers_around_the_model(wrap):
    with pytest.raises(CaptureError, match=rf"wrapped by {wrap.__name__}.*first, then wrap it"):
        noble_fx.transform(wrap(tiny()), rank=4)


class WithTeacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = tiny(), AveragedModel(tiny())

    def forward(self, idx):
        return self.student(idx)


def test_a_wrapper_elsewhere_in_the_model_is_no_trouble():
    model = noble_fx.transform(WithTeacher(), rank=4, select="student.*fc1")
    assert len(named_branches(model)) == 2
    with pytest.raises(CaptureError, match="'teacher' is wrapped by AveragedModel"):
        check_unwrapped(model, "transform", ["teacher.module.blocks.0.fc1"])
    noble_fx.remove(model)


# --- right in either order -------------------------------------------------------------------------------------------

WRAPS = {
    "compiled": lambda block: torch.compile(block, backend="eager"),
    "checkpointed": checkpoint_wrapper,
    "both": lambda block: checkpoint_wrapper(torch.compile(block, backend="eager")),
}


def wrapped_inside(name: str) -> nn.Module:
    model = tiny()
    for i, block in enumerate(model.blocks):
        model.blocks[i] = WRAPS[name](block)
    return model


@pytest.mark.parametrize("name", WRAPS)
def test_wrapped_blocks_get_the_same_branches_from_the_same_seed(name):
    model, x = wrapped_inside(name), tokens()
    base = model(x)  # compiled before there are branches
    noble_fx.transform(model, rank=4, seed=0, init_base=True)
    plain = noble_fx.transform(tiny(), rank=4, seed=0, init_base=True)
    drawn = dict(zip(plain.state_dict(), model.state_dict().values(), strict=True))
    assert all(torch.equal(value, drawn[key]) for key, value in plain.state_dict().items())
    torch.testing.assert_close(loud(model)(x), loud(plain)(x))
    noble_fx.reset_branches(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), drawn.values(), strict=False))
    with noble_fx.disabled(model), noble_fx.disabled(plain):
        torch.testing.assert_close(model(x), plain(x))
    noble_fx.remove(model)
    assert not torch.allclose(model(x), base)  # init_base


# --- drawn again -----------------------------------------------------------------------------------------------------


def zeroed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for branch in named_branches(model).values():
            for parameter in branch.parameters():
                parameter.zero_()
    return model


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.mark.parametrize("wrap", ["DistributedDataParallel", "fully_shard"])
def test_a_reset_of_a_parallel_model_draws_what_transform_drew(wrap):
    fresh = noble_fx.transform(tiny(), rank=4, seed=0).state_dict()
    with one_rank() as mesh:
        model = PARALLEL[wrap](zeroed(noble_fx.transform(tiny(), rank=4, seed=0)), mesh)
        noble_fx.reset_branches(model)
        for name, parameter in model.named_parameters():
            assert torch.equal(whole(parameter), fresh[name.removeprefix("module.")]), name


def test_a_sharded_model_without_values_is_filled_rank_by_rank():
    with torch.device("meta"):
        model = type(tiny())()
    noble_fx.transform(model, rank=4, seed=0)
    fresh = noble_fx.transform(tiny(), rank=4, seed=0).state_dict()
    with one_rank() as mesh:
        fsdp2(model, mesh).to_empty(device="cpu")
        noble_fx.reset_branches(model)
        assert all(torch.equal(whole(p), fresh[name]) for name, p in model.named_parameters() if ".noble." in name)


@pytest.mark.parametrize("wrap", ["DistributedDataParallel", "fully_shard", "checkpointed", "parallel plan"])
def test_what_was_drawn_with_its_base_is_drawn_again_with_it(wrap):
    settings = {"rank": 4, "seed": 0, "init_base": True}
    fresh = noble_fx.transform(tiny(), **settings).state_dict()
    with one_rank() as mesh:
        if wrap == "checkpointed":
            model = noble_fx.transform(wrapped_inside(wrap), **settings)
        elif wrap == "parallel plan":
            model = noble_fx.transform(tensor_parallel(tiny(), mesh), **settings)
        else:
            model = PARALLEL[wrap](noble_fx.transform(tiny(), **settings), mesh)
        chosen = {site.fqn for site in noble_fx.sites(model) if site.selected}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7)
        noble_fx.reset_parameters(model)
        for name, parameter in model.named_parameters():
            own = own_name(name, model)
            drawn = ".noble." in own or own.rpartition(".")[0] in {own_name(fqn, model) for fqn in chosen}
            assert torch.equal(whole(parameter), fresh[own] if drawn else torch.full_like(fresh[own], 7)), name


def test_the_base_is_left_where_it_was_not_drawn():
    model = noble_fx.transform(tiny(), rank=4, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    noble_fx.reset_parameters(zeroed(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_a_seed_the_ranks_of_ddp_would_draw_apart():
    with one_rank() as mesh:
        model = PARALLEL["DistributedDataParallel"](noble_fx.transform(tiny(), rank=4), mesh)
        assert same_on_every_rank(model, "module.blocks.0.fc1")
        with pytest.raises(ConfigError, match=r"'blocks.0.q_proj' has no seed, so every rank"):
            noble_fx.reset_branches(model)


def test_shards_of_fsdp1_are_no_place_to_draw_into():
    with first_of_two():
        model = fsdp1(noble_fx.transform(tiny(), rank=4, seed=0))
        with pytest.raises(ConfigError, match=r"FSDP1 reset the branches before wrapping, or inside .*summon_full"):
            noble_fx.reset_branches(model)


def test_a_parallel_plan_without_branches_is_refused():
    with one_rank() as mesh, pytest.raises(CaptureError, match=r"'noble.down' for .* Linear beside it; .*noble_plan"):
        tensor_parallel(transformed(), mesh)


def test_a_model_with_a_parallel_plan_gets_branches_laid_out_beside_it():
    plain = transformed()
    plain(tokens()).square().sum().backward()
    with one_rank() as mesh:
        model = loud(noble_fx.transform(tensor_parallel(tiny(), mesh), rank=4, seed=0))
        assert is_distributed(model.blocks[0].fc1.noble.up)
        y = model(tokens())
        torch.testing.assert_close(y, plain(tokens()))
        y.square().sum().backward()
        for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(whole(parameter.grad), expected.grad, msg=name)
        torch.optim.AdamW(noble_fx.param_groups(model, lr=1e-2), foreach=False).step()
        noble_fx.remove(noble_fx.reset_branches(model))
        assert type(model.blocks[0].fc1) is nn.Linear

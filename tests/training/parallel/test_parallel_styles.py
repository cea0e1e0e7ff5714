"""Where a style puts the tensors of a layer with a branch; that it learns the same is in test_stacks.py."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle

import noble_fx
from noble_fx import CaptureError, ConfigError, NobleColwiseParallel, NobleRowwiseParallel
from noble_fx.distributed import is_distributed
from noble_fx.training.parallel.parallel_styles import with_branch
from tests.one_rank import first_of_two, one_rank


def two_layers(**settings) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 6))
    return noble_fx.transform(model, rank=3, seed=0, select="all", preset="reference", **settings)


def placements(model: nn.Module) -> dict[str, object]:
    assert all(is_distributed(parameter) for parameter in model.parameters())
    return {name: parameter.placements[0] for name, parameter in model.named_parameters()}


def test_what_has_n_is_cut_in_a_column_and_what_has_k_in_a_row():
    with first_of_two() as mesh:
        model = two_layers()
        parallelize_module(model, mesh, {"0": NobleColwiseParallel(), "2": NobleRowwiseParallel()})
        found = placements(model)
    cut = {"0.weight": 0, "0.bias": 0, "0.noble.up": 0, "2.weight": 1, "2.noble.down": 1}
    assert {name: place.dim for name, place in found.items() if isinstance(place, Shard)} == cut
    assert {place for name, place in found.items() if name not in cut} == {Replicate()}
    assert model[0].noble.up.to_local().shape == (6, 3)
    assert model[2].noble.down.to_local().shape == (3, 6)
    assert list(model[0]._modules) == ["noble"]


@pytest.mark.parametrize("ranks", [first_of_two, one_rank])
def test_transform_after_a_plan_lays_branches_out_alike(ranks):
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    with ranks() as mesh:
        before = two_layers()
        parallelize_module(before, mesh, {name: with_branch(style) for name, style in plan.items()})
        after = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 6))
        parallelize_module(after, mesh, plan)
        noble_fx.transform(after, rank=3, seed=0, select="all", preset="reference")
        assert placements(after) == placements(before)
        for name, parameter in after.named_parameters():
            if ".noble." in name and ranks is one_rank:  # of two, the other is never heard
                assert torch.equal(parameter.to_local(), before.get_parameter(name).to_local())


def test_what_does_not_learn_still_does_not():
    with one_rank() as mesh:
        model = noble_fx.set_trainable(two_layers(), "base")
        parallelize_module(model, mesh, {"0": NobleColwiseParallel(), "2": NobleRowwiseParallel()})
        assert all(p.requires_grad == (".noble." not in name) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("style", "message"),
    [
        (NobleColwiseParallel(), r"Linear 8 → 9: 2 ranks do not divide N=9"),
        (NobleRowwiseParallel(), r"Linear 9 → 8: 2 ranks do not divide K=9"),
    ],
)
def test_ranks_that_do_not_divide_a_width_are_refused_before_anything(style, message):
    layer = nn.Linear(8, 9) if isinstance(style, ColwiseParallel) else nn.Linear(9, 8)
    model = noble_fx.transform(nn.Sequential(layer), rank=2)
    with first_of_two() as mesh, pytest.raises(ConfigError, match=message):
        parallelize_module(model, mesh, {"0": style})
    assert not any(map(is_distributed, model.parameters()))
    assert model(torch.randn(2, layer.in_features)).shape == (2, layer.out_features)


def test_any_style_gets_a_copy_that_knows_branches():
    style = ColwiseParallel(output_layouts=Replicate(), use_local_output=False)
    known = with_branch(style)
    assert type(known) is NobleColwiseParallel
    assert known.output_layouts == (Replicate(),)
    assert not known.use_local_output
    assert with_branch(known) is known
    assert type(style) is ColwiseParallel
    assert isinstance(with_branch(SequenceParallel()), SequenceParallel)


class Nothing(ParallelStyle):
    def _apply(self, module, device_mesh):
        return module


def test_a_style_that_lays_out_nothing_is_told():
    model = two_layers()
    with one_rank() as mesh, pytest.raises(ConfigError, match="NobleNothing leaves no DTensor in the weight"):
        with_branch(Nothing())._apply(model[0], mesh)
    assert list(model[0]._modules) == ["noble"]


def test_a_layer_without_a_branch_is_laid_out_as_ever():
    with one_rank() as mesh:
        layer = nn.Linear(4, 4)
        parallelize_module(layer, mesh, NobleColwiseParallel())
        assert layer.weight.placements == (Shard(0),)


def test_torchs_own_styles_are_refused_with_the_remedy():
    with one_rank() as mesh, pytest.raises(CaptureError, match=r"noble_fx.noble_plan\(model, plan\)"):
        parallelize_module(two_layers(), mesh, {"0": ColwiseParallel()})


def test_a_layer_laid_out_without_its_branch_is_told_when_it_runs():
    from torch.distributed.tensor import DTensor, distribute_tensor

    model = two_layers()
    with one_rank() as mesh:
        model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Shard(0)]))
        model[0].bias = nn.Parameter(distribute_tensor(model[0].bias.detach(), mesh, [Shard(0)]))
        x = DTensor.from_local(torch.randn(2, 8), mesh, [Replicate()])
        with pytest.raises(CaptureError, match="laid over ranks without its branch"):
            model[0](x)

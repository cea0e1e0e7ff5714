"""An ordinary plan as one with branches."""

import warnings

import pytest
import torch
import transformers
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module

import noble_fx
from noble_fx import ConfigError, NobleColwiseParallel, NobleRowwiseParallel
from tests.models import tiny, transformed
from tests.one_rank import one_rank


def llama(tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=20, num_key_value_heads=2, tie_word_embeddings=tied, **sizes)
    return noble_fx.transform(transformers.LlamaForCausalLM(config), rank=3, seed=0)


def test_every_style_of_a_plan_knows_branches_and_the_plan_is_left_alone():
    plan = {"blocks.*.fc1": ColwiseParallel(), "blocks.*.fc2": RowwiseParallel(output_layouts=Shard(1))}
    found = noble_fx.noble_plan(transformed(), plan)
    assert {name: type(style) for name, style in found.items()} == {
        "blocks.*.fc1": NobleColwiseParallel,
        "blocks.*.fc2": NobleRowwiseParallel,
    }
    assert found["blocks.*.fc2"].output_layouts == (Shard(1),)
    assert type(plan["blocks.*.fc1"]) is ColwiseParallel


@pytest.mark.parametrize(
    ("word", "kind", "layouts"),
    [
        ("colwise", NobleColwiseParallel, (Replicate(), Shard(-1))),
        ("colwise_rep", NobleColwiseParallel, (Replicate(), Replicate())),
        ("colwise_gather_output", NobleColwiseParallel, (Replicate(), Replicate())),
        ("rowwise", NobleRowwiseParallel, (Shard(-1), Replicate())),
        ("rowwise_rep", NobleRowwiseParallel, (Replicate(), Replicate())),
        ("rowwise_split_input", NobleRowwiseParallel, (Replicate(), Replicate())),
    ],
)
def test_words_of_transformers(word, kind, layouts):
    style = noble_fx.noble_plan(transformed(), {"blocks.0.fc1": word})["blocks.0.fc1"]
    assert type(style) is kind
    assert (style.input_layouts[0], style.output_layouts[0]) == layouts


def test_what_transformers_leaves_whole_is_left_whole():
    found = noble_fx.noble_plan(transformed(), {"blocks.0.fc1": "colwise", "blocks.0.fc2": "replicate"})
    assert list(found) == ["blocks.0.fc1"]


def test_a_plan_of_transformers_parallelizes_its_model():
    ids = torch.arange(10).reshape(2, 5)
    expected = llama()(ids).logits
    with one_rank() as mesh:
        model = llama()
        parallelize_module(model, mesh, noble_fx.noble_plan(model, model.tp_plan))
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-6, rtol=0)
        assert model.model.layers[0].mlp.down_proj.noble.down.placements == (Shard(1),)


def test_shared_parameters_are_told():
    model = llama(tied=True)
    with pytest.warns(UserWarning, match=r"'model.embed_tokens' and 'lm_head' share one parameter.*tie them again"):
        noble_fx.noble_plan(model, model.tp_plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noble_fx.noble_plan(llama(), llama().tp_plan)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "must be a dict"),
        (ColwiseParallel(), "must be a dict"),
        ({"blocks.*.fc3": ColwiseParallel()}, r"names 'blocks.\*.fc3', which is no module .*did you mean 'blocks"),
        ({3: ColwiseParallel()}, "names 3, which is no module"),
        ({"blocks.0.fc1": None}, "None for 'blocks.0.fc1', which is no ParallelStyle"),
        ({"blocks.0.fc1": "packed_colwise"}, r"'packed_colwise' for 'blocks.0.fc1' has no style .* 'replicate'"),
    ],
)
def test_bad_plans(plan, message):
    with pytest.raises(ConfigError, match=message):
        noble_fx.noble_plan(transformed(), plan)


def test_a_model_without_branches():
    with pytest.raises(ConfigError, match=r"carries no branches; call noble_fx.transform first"):
        noble_fx.noble_plan(tiny(), {"blocks.*.fc1": ColwiseParallel()})


def test_styles_of_containers_stay():
    style = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
    assert isinstance(noble_fx.noble_plan(transformed(), {"blocks.*": style})["blocks.*"], PrepareModuleInput)


def test_a_plan_says_nothing_of_branches_around_blocks():
    model = noble_fx.transform(tiny(), rank=4, scope="block")
    with pytest.raises(ConfigError, match=r"around the block 'blocks\.0' reads hidden states"):
        noble_fx.noble_plan(model, {"blocks.*.fc1": ColwiseParallel()})

"""Folders of transformers, read with branches."""

import warnings

import pytest
import torch
import transformers
from torch import nn

import noble_fx
from noble_fx import CheckpointError, ConfigError, NobleConfig
from noble_fx.attach.bases import described_bases
from tests.models import loud, tokens

TEXT = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=1, **SIZES, **TEXT)).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **TEXT)
    return transformers.GPT2LMHeadModel(config).eval()


def bert():
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **TEXT)).eval()


def noble(make=llama, **settings):
    return loud(noble_fx.transform(make(), **{"rank": 4, "seed": 0, **settings}))


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in mine.items())


@pytest.mark.parametrize(
    ("make", "auto"),
    [
        (llama, transformers.AutoModelForCausalLM),
        (gpt2, transformers.AutoModelForCausalLM),
        (bert, transformers.AutoModelForMaskedLM),
        (llama, transformers.LlamaForCausalLM),
    ],
)
def test_what_save_pretrained_wrote_comes_back(make, auto, tmp_path):
    model = noble(make, act="gelu_net", rank_pattern={"q_proj|query|c_attn": 2})
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = noble_fx.from_pretrained(auto, tmp_path)
    assert type(again) is type(model)
    assert equal(again, model)
    assert again.config.noble == model.config.noble
    with torch.no_grad():
        assert torch.equal(again(tokens() + 3)[0], model(tokens() + 3)[0])


def test_transformers_own_settings_are_its_business(tmp_path):
    noble().save_pretrained(tmp_path)
    again, info = noble_fx.from_pretrained(
        transformers.AutoModelForCausalLM, tmp_path, dtype=torch.bfloat16, output_loading_info=True
    )
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert not info["missing_keys"]
    config = transformers.AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    assert noble_fx.from_pretrained(type(again), tmp_path, config=config).config._attn_implementation == "eager"


def test_beside_a_base_checkpoint_branches_are_drawn(tmp_path):
    llama().save_pretrained(tmp_path)
    settings = NobleConfig(rank=4, seed=5)
    model = noble_fx.from_pretrained(transformers.AutoModelForCausalLM, tmp_path, noble=settings)
    assert equal(model, noble_fx.transform(llama(), config=settings))


def test_a_class_that_transforms_itself(tmp_path):
    class Own(transformers.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            noble_fx.transform(self, rank=4, seed=0)

    model = loud(Own(llama().config)).eval()
    model.save_pretrained(tmp_path)
    assert equal(noble_fx.from_pretrained(Own, tmp_path), model)


def test_a_saved_model_goes_on_generating_with_every_cache_and_in_a_pipeline(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    noble().save_pretrained(tmp_path)
    model = noble_fx.from_pretrained(transformers.AutoModelForCausalLM, tmp_path)
    ids = tokens() + 3
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": 98}
    expected = noble().generate(ids, use_cache=False, **settings)
    for cache in ("dynamic", "static"):
        assert torch.equal(model.generate(ids, cache_implementation=cache, **settings), expected), cache
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(99)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    (answer,) = pipe("w5 w6 w7", max_new_tokens=3, do_sample=False)
    assert answer["generated_text"].startswith("w5 w6 w7")


# --- refused, or told -----------------------------------------------------------------------------------------------


def test_a_folder_that_says_nothing_of_branches(tmp_path):
    llama().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"says nothing of branches; give noble=NobleConfig"):
        noble_fx.from_pretrained(transformers.LlamaForCausalLM, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NobleConfig(rank=8, seed=0), r"other settings than noble=... has \(rank\)"),
        ("cosnet", r"noble='cosnet' must be None or a NobleConfig"),
    ],
)
def test_settings_that_are_not_the_folders(given, message, tmp_path):
    noble().save_pretrained(tmp_path)
    with pytest.raises(noble_fx.NobleError, match=message):
        noble_fx.from_pretrained(transformers.LlamaForCausalLM, tmp_path, noble=given)


def test_the_folders_own_settings_may_be_said_again(tmp_path):
    noble().save_pretrained(tmp_path)
    again = noble_fx.from_pretrained(transformers.LlamaForCausalLM, tmp_path, noble=NobleConfig(rank=4, seed=0))
    assert equal(again, noble())


@pytest.mark.parametrize(("written", "message"), [(7, "is 7, which is no dict"), ({"ranks": 4}, "is not a setting")])
def test_settings_that_nobody_wrote(written, message, tmp_path):
    model = noble()
    model.config.noble = written
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        noble_fx.from_pretrained(transformers.LlamaForCausalLM, tmp_path)


def test_a_folder_whose_branches_are_missing_or_others_is_told(tmp_path):
    model = noble()
    base = {name: value for name, value in model.state_dict().items() if ".noble." not in name}
    model.save_pretrained(tmp_path / "base", state_dict=base)
    with pytest.warns(UserWarning, match=r"has no values for \d+ tensors of branches .* saved by a model without"):
        noble_fx.from_pretrained(transformers.LlamaForCausalLM, tmp_path / "base")
    model.config.noble = {**model.config.noble, "select": "q_proj"}
    model.save_pretrained(tmp_path / "more")
    with pytest.raises(CheckpointError, match=r"holds \d+ tensors of branches that its settings do not make"):
        noble_fx.from_pretrained(transformers.LlamaForCausalLM, tmp_path / "more")


def test_an_auto_class_of_another_task(tmp_path):
    noble().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not say which class a LlamaConfig belongs to"):
        noble_fx.from_pretrained(transformers.AutoModelForMaskedLM, tmp_path)
    with pytest.raises(ConfigError, match="give the model class itself"):
        noble_fx.from_pretrained("llama", tmp_path)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_compressed_model_comes_back(make, branches, tmp_path):
    model = noble(make) if branches else make()
    ids = torch.randint(3, 99, (8, 16), generator=torch.Generator().manual_seed(0))
    small = noble_fx.compress(model, {"input_ids": ids}, rank=4, progress=False)
    small.save_pretrained(tmp_path)
    again = noble_fx.from_pretrained(transformers.AutoModelForCausalLM, tmp_path).eval()
    assert torch.equal(again(input_ids=ids).logits, small(input_ids=ids).logits)
    assert {type(m) for m in again.modules()} == {type(m) for m in small.modules()}
    assert not hasattr(model.config, "noble_bases")  # the original's is its own


def test_bases_that_are_none_are_told(tmp_path):
    model = llama()
    model.config.noble_bases = ["q_proj"]
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="noble_bases"):
        noble_fx.from_pretrained(transformers.AutoModelForCausalLM, tmp_path)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("base", ["factorized", "sparse_low_rank", "spectral"])
def test_weights_of_another_form_come_back(make, base, tmp_path):
    model = noble(make, rank=2, base=base, base_rank=4, base_settings={"density": 0.05} if "sparse" in base else None)
    model.save_pretrained(tmp_path)
    again = noble_fx.from_pretrained(type(model), tmp_path)
    assert equal(again, model)
    assert described_bases(again) == described_bases(model) != {}


def test_freed_of_its_guides_a_model_comes_back_without_them(tmp_path):
    model = noble(rank=2, base="factorized", base_rank=4, guide=0.5)
    noble_fx.step(model, 0.5)
    model.save_pretrained(tmp_path)
    assert equal(noble_fx.from_pretrained(type(model), tmp_path), model)


def test_a_base_checkpoint_cannot_be_read_into_parts(tmp_path):
    llama().save_pretrained(tmp_path)
    settings = NobleConfig(rank=2, base="factorized", base_rank=4)
    with pytest.raises(CheckpointError, match=r"base=.factorized. is filled from weights, .* load the model as it is"):
        noble_fx.from_pretrained(transformers.LlamaForCausalLM, tmp_path, noble=settings)


def test_a_folder_whose_bases_are_others_is_told(tmp_path):
    model = noble(rank=2, base="factorized", base_rank=4)
    written = model.config.noble
    noble_fx.merge_bases(model)
    assert model.config.noble["base"] is None
    model.config.noble = written
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no values for 28 tensors of weights of another form"):
        noble_fx.from_pretrained(type(model), tmp_path)

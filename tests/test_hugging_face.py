"""The models people train: transformers' own classes, from tiny random configs."""

import copy
import io
import pickle
import time

import pytest
import torch
import transformers
from torch import nn

import noble_fx
from noble_fx.transform import named_branches
from tests.models import loud, silent, tokens

TEXT = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **TEXT))


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=1, **SMALL, **TEXT))


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, **TEXT))


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **SMALL))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(decoder_start_token_id=0, **sizes, **TEXT))


# Model, its linears per block (each of the two blocks has them all), and what is passed over, with the reason.
TIED = "its weight is tied to another module's"
HEAD = "an output head"
MODELS = {
    "gpt2": (gpt2, {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}, {"lm_head": TIED}),
    "llama": (
        llama,
        {f"self_attn.{n}_proj" for n in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")},
        {"lm_head": HEAD},
    ),
    "bert": (
        bert,
        {f"attention.self.{n}" for n in ("query", "key", "value")}
        | {"attention.output.dense", "intermediate.dense", "output.dense"},
        {"cls.predictions.transform.dense": HEAD, "cls.predictions.decoder": TIED},
    ),
    "vit": (vit, None, {"classifier": HEAD}),
    "t5": (t5, None, {"lm_head": TIED}),
}
COUNTS = {"gpt2": 8, "llama": 14, "bert": 12, "vit": 12, "t5": 32}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    if name == "vit":
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
    ids = {"input_ids": tokens() + 3}
    return {**ids, "decoder_input_ids": tokens(2, 4) + 3} if name == "t5" else ids


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def test_every_chosen_linear_is_augmented_and_the_rest_say_why(name):
    model = noble_fx.transform(make(name), rank=4)
    found = noble_fx.sites(model)
    chosen = [site for site in found if site.selected]
    assert len(chosen) == COUNTS[name] == len(named_branches(model))
    assert {site.fqn: site.reason for site in found if not site.selected} == MODELS[name][2]
    assert all(site.role != "other" for site in chosen)
    assert all(site.unfused == "" for site in chosen)
    expected = MODELS[name][1]
    if expected is not None:
        assert {site.fqn.split(".0.", 1)[1] for site in chosen if ".0." in site.fqn} == expected


def test_it_stays_what_it_was(name):
    plain, model = make(name), make(name)
    keys = list(model.state_dict())
    result = noble_fx.transform(model, rank=4)
    assert result is model
    assert isinstance(model, type(plain))
    state = model.state_dict()
    assert [key for key in state if ".noble." not in key] == keys
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert all(".noble." in key for key in missing)
    assert unexpected == []


def test_without_u_the_output_is_the_originals_bit_for_bit(name):
    with torch.no_grad():
        expected = make(name)(**inputs(name))[0]
        model = noble_fx.transform(make(name), rank=4)
        assert torch.equal(silent(model)(**inputs(name))[0], expected)
        assert not torch.equal(loud(model)(**inputs(name))[0], expected)
        with noble_fx.disabled(model):
            assert torch.equal(model(**inputs(name))[0], expected)


def test_all_branch_parameters_get_gradients(name):
    model = loud(noble_fx.transform(make(name), rank=4)).train()
    model(**inputs(name))[0].square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if ".noble." in parameter_name:
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_generate_with_its_cache(name):
    model = loud(noble_fx.transform(make(name), rank=4))
    ids = inputs(name)["input_ids"]
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **settings))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(name, copied):
    model = loud(noble_fx.transform(make(name), rank=4))
    with torch.no_grad():
        assert torch.equal(copied(model)(**inputs(name))[0], model(**inputs(name))[0])


def test_bfloat16(name):
    model = loud(noble_fx.transform(make(name), rank=4)).to(torch.bfloat16)
    given = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs(name).items()}
    with torch.no_grad():
        output = model(**given)[0]
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()


def test_meta_then_to_empty(name):
    with torch.device("meta"):
        model = MODELS[name][0]()
    model = noble_fx.transform(model, rank=4, seed=0)
    assert all(parameter.is_meta for parameter in model.parameters())
    model = noble_fx.reset_branches(model.to_empty(device="cpu"))
    ours = noble_fx.transform(make(name), rank=4, seed=0).state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in model.state_dict().items() if ".noble." in k)


def test_save_pretrained_keeps_the_base_loadable(tmp_path):
    model = noble_fx.transform(make("llama"), rank=4)
    model.save_pretrained(tmp_path)
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    with noble_fx.disabled(model), torch.no_grad():
        assert torch.equal(plain(**inputs("llama"))[0], model(**inputs("llama"))[0])


def test_the_trainer_trains_it(tmp_path):
    model = noble_fx.transform(make("llama"), rank=4, seed=0)
    data = [{"input_ids": row, "labels": row} for row in tokens(8, 6) + 3]
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, lr=1e-2))
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True
    )
    before = {key: value.clone() for key, value in model.state_dict().items() if ".noble." in key}
    trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))
    trainer.train()
    assert all(not torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.long
def test_seventy_billion_parameters_on_the_meta_device():
    config = transformers.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    start = time.perf_counter()
    noble_fx.transform(model, rank=64, seed=0)
    assert time.perf_counter() - start < 30  # 1 to 3 s when nothing else runs; materialising 70B would not finish
    assert len(named_branches(model)) == 560
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.long  # another process imports transformers; `test_copies` pickles every architecture in this one
def test_a_pickled_model_works_in_a_new_process(tmp_path):
    import subprocess
    import sys

    model = loud(noble_fx.transform(make("llama"), rank=4))
    file, answer = tmp_path / "model.pt", io.BytesIO()
    torch.save({"model": model, "ids": tokens() + 3}, file)
    code = (
        "import sys, torch; d = torch.load(sys.argv[1], weights_only=False); "
        "torch.save(d['model'](d['ids'])[0].detach(), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(file), str(tmp_path / "out.pt")], check=True)
    answer = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(answer, model(tokens() + 3)[0])  # that process may use other threads


# --- classes that transform themselves, which from_pretrained builds on the meta device ------------------------------


class Wave(nn.Module):
    """A σ with a linear layer of its own, which transformers would draw its own way, and a buffer of no checkpoint."""

    def __init__(self, rank: int):
        super().__init__()
        self.mix = nn.Linear(rank, rank)
        self.register_buffer("shift", torch.full((rank,), 0.5), persistent=False)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.cos(self.mix(h) + self.shift)


class NobleLlama(transformers.LlamaForCausalLM):
    settings = {"rank": 4, "seed": 0}

    def __init__(self, config):
        super().__init__(config)
        noble_fx.transform(self, **self.settings)


class NobleGPT2(transformers.GPT2LMHeadModel):
    def __init__(self, config):
        super().__init__(config)
        noble_fx.transform(self.transformer.h, rank=4, seed=0)


class WaveLlama(NobleLlama):
    settings = {"rank": 4, "seed": 0, "act": Wave}


SELF_TRANSFORMING = {"llama": NobleLlama, "gpt2": NobleGPT2, "own": WaveLlama}


@pytest.fixture(params=SELF_TRANSFORMING)
def noble(request):
    """(the class, a plain model of the same shape)"""
    return SELF_TRANSFORMING[request.param], make("gpt2" if request.param == "gpt2" else "llama")


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_branches_equal(model: nn.Module, expected: nn.Module) -> None:
    own, theirs = tensors(model), tensors(expected)
    assert own.keys() == theirs.keys()
    assert sum(".noble." in key for key in own) > 40
    assert [key for key in own if ".noble." in key and not torch.equal(own[key], theirs[key])] == []


def test_branches_that_a_checkpoint_lacks_are_drawn_as_transform_draws_them(noble, tmp_path):
    cls, base = noble
    base.save_pretrained(tmp_path)
    model, fresh = cls.from_pretrained(tmp_path), cls(base.config)
    assert_branches_equal(model, fresh)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base.state_dict().items())
    fresh.load_state_dict(base.state_dict(), strict=False)
    ids = tokens() + 3
    with torch.no_grad():
        assert torch.equal(model(ids)[0], fresh.eval()(ids)[0])


def test_save_pretrained_and_from_pretrained_round_trip_the_branches(noble, tmp_path):
    cls, base = noble
    model = loud(cls(base.config)).eval()
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert_branches_equal(again, model)
    with torch.no_grad():
        assert torch.equal(again(tokens() + 3)[0], model(tokens() + 3)[0])


def test_of_a_branch_that_is_there_in_part_the_rest_is_drawn(noble, tmp_path):
    cls, base = noble
    model, fresh = loud(cls(base.config)), cls(base.config)
    kept = {
        key: value for key, value in model.state_dict().items() if not key.endswith((".down", "bias", "mix.weight"))
    }
    model.save_pretrained(tmp_path, state_dict=dict(kept))  # which it empties
    expected = {**tensors(fresh), **kept}
    own = tensors(cls.from_pretrained(tmp_path))
    assert [key for key in own if ".noble." in key and not torch.equal(own[key], expected[key])] == []


def test_missing_branches_are_drawn_in_float32_and_stored_in_the_dtype_that_is_asked_for(tmp_path):
    make("llama").save_pretrained(tmp_path)
    model = NobleLlama.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = noble_fx.transform(make("llama").to(torch.bfloat16), **NobleLlama.settings)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert_branches_equal(model, expected)


def test_a_loaded_model_is_not_drawn_again(tmp_path):
    make("llama").save_pretrained(tmp_path)
    model = loud(NobleLlama.from_pretrained(tmp_path))
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        again.init_weights()
        assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    plain = noble_fx.remove(model)
    assert not any("noble" in key for key in tensors(plain))


def test_a_copy_of_a_model_on_meta_still_lacks_its_values():
    with torch.device("meta"):
        model = NobleLlama(make("llama").config)
    fresh = NobleLlama(model.config)
    for made in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        made.init_weights()  # of what lies on meta still
        made.to_empty(device="cpu").initialize_weights()
        assert_branches_equal(nn.ModuleList(made.model.layers), nn.ModuleList(fresh.model.layers))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", [107, 90])
def test_the_branch_of_a_head_follows_resize_token_embeddings(tied, size):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_key_value_heads=1, tie_word_embeddings=tied, **SMALL, **TEXT)
    model = transformers.LlamaForCausalLM(config)
    model = loud(noble_fx.transform(model, rank=4, seed=0, select="lm_head|q_proj")).eval()
    ids, shared = tokens() + 3, min(size, 99)
    with torch.no_grad():
        expected = model(ids)[0]
        with pytest.warns(UserWarning, match="'lm_head' has .* outputs now"):
            model.resize_token_embeddings(size)
        torch.testing.assert_close(model(ids)[0][..., :shared], expected[..., :shared])
    (head,) = [site for site in noble_fx.sites(model) if site.fqn == "lm_head"]
    assert (head.selected, head.out_features, head.unfused) == (True, size, "")
    assert model.lm_head.noble.up.shape == (size, 4)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("make", [llama, gpt2])
def test_ranks_change_while_it_is_trained(make, tmp_path):
    torch.manual_seed(0)
    model = loud(noble_fx.transform(make().double(), rank=4, seed=0)).eval()
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, 1e-3, weight_decay=0.1))
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    before = model(tokens()).logits
    noble_fx.set_rank(model, 7, optimizer)
    assert (model(tokens()).logits - before).abs().max() < 1e-12
    changes = noble_fx.set_rank(model, {r"\.0\.": 3}, optimizer, inputs={"input_ids": tokens()})
    assert {change.on for change in changes} == {"inputs"}
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    loaded = noble_fx.load(make().double(), noble_fx.save(model, tmp_path / "saved")).eval()
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    model.save_pretrained(tmp_path / "folder")
    again = noble_fx.from_pretrained(type(model), tmp_path / "folder", dtype=torch.float64).eval()
    assert (again(tokens()).logits - model(tokens()).logits).abs().max() < 1e-12
    noble_fx.remove_branches(model, "all", optimizer)
    assert not hasattr(model.config, "noble")

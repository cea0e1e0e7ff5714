"""What `save` writes of a Hugging Face model beside its weights, and what it keeps."""

import json

import pytest
import torch
import transformers

import noble_fx
from noble_fx import CheckpointError
from noble_fx.checkpoints.pretrained_files import KEPT, known
from tests.models import loud, tiny, tokens, transformed


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=99, num_key_value_heads=1, **sizes)).eval()


def noble():
    return loud(noble_fx.transform(llama(), rank=4, seed=0))


def test_a_saved_folder_is_one_of_transformers_too(tmp_path):
    model = noble()
    model.generation_config.max_new_tokens = 7
    noble_fx.save(model, tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"model.safetensors", "noble_config.json", "config.json", "generation_config.json"}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    again = noble_fx.from_pretrained(transformers.AutoModelForCausalLM, tmp_path / "saved")
    assert again.generation_config.max_new_tokens == 7
    with torch.no_grad():
        assert torch.equal(again(tokens())[0], model(tokens())[0])
        assert torch.equal(noble_fx.load(llama(), tmp_path / "saved")(tokens())[0], model(tokens())[0])


def test_a_tokenizer_stays_where_the_model_is_written_again(tmp_path):
    folder = tmp_path / "saved"
    noble_fx.save(noble(), folder)
    for name in KEPT:
        (folder / name).write_text(name)
    noble_fx.save(noble(), folder, overwrite=True)
    assert all((folder / name).read_text() == name for name in KEPT)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes.txt, which noble_fx.save did not write"):
        noble_fx.save(noble(), folder, overwrite=True)


def test_a_folder_of_transformers_own_is_not_replaced(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"model.safetensors without a noble_config.json would be lost"):
        noble_fx.save(noble(), tmp_path / "base", overwrite=True)


def test_any_other_model_knows_no_such_files(tmp_path):
    assert known(tiny()) == ()
    noble_fx.save(transformed(), tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text("mine")
    with pytest.raises(CheckpointError, match=r"config.json, which noble_fx.save did not write"):
        noble_fx.save(transformed(), tmp_path / "saved", overwrite=True)


def test_a_config_that_transformers_does_not_write_is_an_error_and_leaves_nothing(tmp_path):
    model = noble()
    model.config.strange = object()
    with pytest.raises(CheckpointError, match="transformers does not write the model's config"):
        noble_fx.save(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []

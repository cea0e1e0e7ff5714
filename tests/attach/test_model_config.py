"""A Hugging Face model's config says how its branches were made, as long as it has them."""

import json
import sys

import pytest
import transformers
from torch import nn

import noble_fx
from noble_fx.attach.model_config import is_pretrained, note
from tests.models import tiny

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=20, **SIZES))


def test_the_settings_are_those_of_the_transform_and_go_with_the_branches():
    config = noble_fx.NobleConfig(rank=4, act="gelu_net", seed=3, rank_pattern={"query": 2})
    model = noble_fx.transform(bert(), config=config)
    assert noble_fx.NobleConfig.from_dict(json.loads(json.dumps(model.config.noble))) == config.replace(
        capture="modules"
    )
    noble_fx.remove(model)
    assert not hasattr(model.config, "noble")


def test_a_config_that_several_models_share_says_nothing_of_ones_branches():
    config = transformers.BertConfig(vocab_size=20, **SIZES)
    model, plain = transformers.BertForMaskedLM(config), transformers.BertForMaskedLM(config)
    noble_fx.transform(model, rank=4)
    assert model.config.noble["rank"] == 4
    assert plain.config is config
    assert not hasattr(config, "noble")
    own = [module.config for name, module in model.named_modules() if hasattr(module, "config") and "noble" not in name]
    assert len(own) > 3
    assert all(each is model.config for each in own)
    again = noble_fx.transform(noble_fx.remove(model), rank=2)
    assert again.config.noble["rank"] == 2


def test_settings_without_a_name_are_in_no_file():
    model = noble_fx.transform(bert(), rank=4, act=lambda rank: nn.Tanh())
    assert not hasattr(model.config, "noble")
    model.config.noble = {"rank": 7}  # of a folder that the model was read from
    note(model)
    assert not hasattr(model.config, "noble")


def test_a_model_of_ones_own_has_no_such_config():
    model = tiny()
    model.config = object()
    note(noble_fx.transform(model, rank=4))
    assert not hasattr(model.config, "noble")
    assert not is_pretrained(model)
    assert is_pretrained(bert())


def test_a_transform_that_fails_leaves_the_config_alone(monkeypatch):
    model = bert()
    before = model.config.to_dict()
    with pytest.raises(noble_fx.ConfigError):
        noble_fx.transform(model, rank=4, select=["no.such.layer"])
    monkeypatch.setattr(sys.modules["noble_fx.transform"], "note", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        noble_fx.transform(model, rank=4)
    assert model.config.to_dict() == before
    assert not any(".noble." in name for name in model.state_dict())

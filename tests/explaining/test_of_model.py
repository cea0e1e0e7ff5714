"""The account of a live model."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.explaining.of_model import account_of_model, config_values
from tests.models import Gamma, tiny, transformed


def test_every_capture_tells_the_same_of_the_sites():
    modules, graph = account_of_model(transformed("modules")), account_of_model(transformed("fx"))
    assert modules.entries == graph.entries
    assert modules.config == {**graph.config, "capture": "modules"}


def test_a_plain_model_shows_what_transform_would_choose():
    account = account_of_model(tiny(width=80))
    assert not account.transformed
    assert (account.branch_params, account.programs) == (0, ())
    assert account.planned_params == sum(site.params for site in noble_fx.transform(tiny(width=80), dry_run=True))
    assert {entry.state for entry in account.entries} == {"planned", "left out"}
    live = account_of_model(noble_fx.transform(tiny(width=80)))
    assert account.branch_flops == live.branch_flops
    assert account.acts == live.acts


def test_a_model_that_was_removed_is_plain_again():
    assert not account_of_model(noble_fx.remove(transformed("modules"))).transformed


def test_settings_that_no_file_can_hold_are_shown():
    model = noble_fx.transform(tiny(), rank=4, act=Gamma)
    assert "Gamma" in config_values(model.blocks[0].fc1.noble.config)["act"]
    assert "Gamma" in account_of_model(model).config["act"]


def test_kernels_are_told_of_fused_sites_alone():
    entries = {entry.way: entry for entry in account_of_model(transformed("modules")).entries}
    assert entries["fused"].kernels is True
    assert entries[""].kernels is None
    (eager,) = {(e.kernels, e.no_kernel) for e in account_of_model(transformed("modules", fuse=False)).chosen}
    assert eager == (None, "")
    unheard = account_of_model(noble_fx.transform(tiny(), rank=4, act=Gamma)).chosen[0]
    assert unheard.kernels is False
    assert "lgamma" in unheard.no_kernel


@pytest.mark.long
def test_a_large_model_costs_no_memory_and_little_time():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
    with torch.device("meta"):
        config = transformers.LlamaConfig(num_hidden_layers=4, vocab_size=128256, **sizes)
        account = account_of_model(noble_fx.transform(transformers.LlamaForCausalLM(config)))
    assert account.base_flops == 2 * sum(m.weight.numel() for m in account_linears(config))
    assert account.chosen[0].pattern == "model.layers.*.self_attn.q_proj"


def account_linears(config) -> list[nn.Linear]:
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    return [module for module in model.modules() if isinstance(module, nn.Linear)]

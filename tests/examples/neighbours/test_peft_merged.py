"""Adapters of peft on a model with branches: what goes on exactly when they are merged, and what does not."""

import warnings

import peft
import pytest
import torch

import noble_fx
from examples.neighbours.peft_merged import ADAPTERS, LAYERS, fine_tune, main, merge, pretrained
from tests.samples import sampled

X = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
GOAL = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)) / 6


def tuned(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's, that a tensor of one element is made a number
        model = peft.get_peft_model(pretrained(), config)
        fine_tune(model, GOAL, steps=5)
    return model.eval()


def also_exact():
    yield "VeRA", peft.VeraConfig(r=8, target_modules=LAYERS)
    yield "LoHa", peft.LoHaConfig(r=4, target_modules=LAYERS)
    yield "LoKr", peft.LoKrConfig(r=4, target_modules=LAYERS)


EXACT = {**ADAPTERS, **dict(also_exact())}


@pytest.mark.parametrize("name", EXACT)
def test_it_starts_from_the_model_with_its_branches(name):
    torch.testing.assert_close(peft.get_peft_model(pretrained(), EXACT[name])(X), pretrained()(X), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_branches_and_bases_are_frozen_and_the_adapter_learns(name):
    model, plain = tuned(EXACT[name]), pretrained()
    for key, value in plain.state_dict().items():
        layer, _, rest = key.partition(".")
        assert torch.equal(model.base_model.model[int(layer)].base_layer.state_dict()[rest], value), key
    assert not torch.allclose(model(X), plain(X), atol=1e-4)


@pytest.mark.parametrize("name", sampled(list(EXACT), ["LoRA", "MiSS"]))
def test_merged_it_is_a_model_with_branches_like_any_other(name, tmp_path):
    model = tuned(EXACT[name])
    expected = model(X)
    merged = merge(model, X)
    assert type(merged[0]) is type(pretrained()[0])
    for key, value in pretrained().state_dict().items():
        if ".noble." in key:
            assert torch.equal(merged.state_dict()[key], value), key
    torch.testing.assert_close(merged(X), expected, rtol=0, atol=1e-5)
    assert [site.selected for site in noble_fx.sites(merged)] == [True, True]
    assert "2 of 2 linear maps carry a branch" in str(noble_fx.explain(merged)).replace("all 2", "2 of 2")
    report = noble_fx.export_onnx(merged, (X,), tmp_path / "merged.onnx")
    plain = noble_fx.export_onnx(pretrained().eval(), (X,), tmp_path / "plain.onnx")
    assert report.nodes == plain.nodes
    torch.testing.assert_close(noble_fx.runtime.OnnxModel(tmp_path / "merged.onnx")(X), expected, rtol=0, atol=1e-5)
    noble_fx.save(merged, tmp_path / "saved")
    again = noble_fx.load(torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32)),
                          tmp_path / "saved")  # fmt: skip
    torch.testing.assert_close(again(X), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_explain_and_export_of_a_model_that_still_has_its_adapter(name, tmp_path):
    model = tuned(ADAPTERS[name])
    sites = [site for site in noble_fx.sites(model) if site.selected]
    assert [site.fqn for site in sites] == [f"base_model.model.{layer}.base_layer" for layer in LAYERS]
    assert "carry a branch" in str(noble_fx.explain(model))
    noble_fx.export_onnx(model, (X,), tmp_path / "tuned.onnx")
    torch.testing.assert_close(noble_fx.runtime.OnnxModel(tmp_path / "tuned.onnx")(X), model(X), rtol=0, atol=1e-5)


def test_an_adapter_may_be_taken_off_again():
    model = tuned(ADAPTERS["LoRA"])
    torch.testing.assert_close(model.unload()(X), pretrained()(X), rtol=0, atol=0)


def not_exact():
    yield "DoRA scales the branch", peft.LoraConfig(r=4, use_dora=True, target_modules=LAYERS)
    yield "IA3 scales the branch", peft.IA3Config(feedforward_modules=[], target_modules=LAYERS)
    yield "OFT turns the branch's input", peft.OFTConfig(target_modules=LAYERS)
    yield "bat goes past the branch", peft.MissConfig(r=4, init_weights="bat", target_modules=LAYERS)
    yield "HRA goes past the branch", peft.HRAConfig(r=4, target_modules=LAYERS)


@pytest.mark.parametrize("config", dict(not_exact()).values(), ids=dict(not_exact()).keys())
def test_adapters_that_the_page_warns_of_are_refused_when_merged(config):
    with pytest.raises(ValueError, match="this adapter does not go with branches"):
        merge(tuned(config), X)


def test_without_branches_these_merge_as_well():
    """So it is their way with what the layer computes beside W x, and nothing else."""
    for config in dict(not_exact()).values():
        model = peft.get_peft_model(noble_fx.remove(pretrained()), config)
        fine_tune(model, GOAL, steps=5)
        merge(model, X)


def test_it_runs(capsys):
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ADAPTERS)
    for line in lines:
        first, last = float(line.split()[2]), float(line.split()[4].rstrip(","))
        assert last < first

import torch

import noble_fx
from noble_fx.report import overview
from tests.models import Gamma, tiny, transformed


def test_the_cost_in_numbers():
    facts = {fact.title: (fact.value, fact.note) for fact in overview.facts(noble_fx.explain(transformed("fx")))}
    assert facts["Linear maps with a branch"] == ("12", "of 13")
    assert facts["Parameters"] == ("+43.4%", "5,012 + 2,176")
    assert facts["Fused into one operator"] == ("12", "of 12; 0 eager")
    assert facts["Generated GPU kernels"] == ("12", "of 12 fused")


def test_large_numbers_are_short():
    assert overview._short(70_553_706_496, "B") == "70.55 B"
    assert overview._short(1_661_337_600, "G") == "1.661 G"
    assert overview._short(9_999_999, "B") == "9,999,999"


def test_what_is_left_out_is_folded_with_its_reason():
    explained = noble_fx.explain(noble_fx.transform(tiny(), rank=4, select="ffn"))
    reasons = overview.left_out(explained)
    assert sum(reason.sites for reason in reasons) == 9
    assert "blocks.*.q_proj ×2" in [name for reason in reasons for name in reason.names]


def test_what_runs_on_a_gpu_and_what_does_not():
    (fused,) = overview.on_a_gpu(noble_fx.explain(transformed("modules")))
    assert (fused.text, fused.sites) == ("Fused, by generated kernels", 12)
    (gamma,) = overview.on_a_gpu(noble_fx.explain(noble_fx.transform(tiny(), rank=4, act=Gamma)))
    assert gamma.text.startswith("Fused, by PyTorch operators: aten.lgamma")
    (eager,) = overview.on_a_gpu(noble_fx.explain(noble_fx.transform(tiny(), rank=4, fuse=False)))
    assert eager.text.startswith("Eager branch, PyTorch operators: ")
    assert overview.on_a_gpu(noble_fx.explain(tiny())) == []


def test_the_settings_are_those_of_the_model():
    told = overview.settings(noble_fx.explain(transformed("fx")))
    assert (told["rank"], told["act"], told["capture"], told["seed"]) == ("4", "cosnet", "fx", "0")
    assert overview.settings(noble_fx.explain(tiny())) == {}


def test_one_is_one():
    model = noble_fx.transform(torch.nn.Sequential(torch.nn.Linear(8, 8)), rank=2, select="all")
    assert overview.lead(noble_fx.explain(model)) == "1 of 1 linear map carries a branch."

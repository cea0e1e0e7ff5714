"""Adapters to and from peft's folders, compared with peft itself."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CheckpointError, ConfigError
from tests.test_stacking import adapted, fill, noble

peft = pytest.importorskip("peft")
X = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """Two layers of other shapes, and one that an end of a name would take along."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_proj, self.v_proj = nn.Linear(12, 20), nn.Linear(20, 12)
        self.block = nn.ModuleDict({"q_proj": nn.Linear(12, 12)})

    def forward(self, x):
        return self.block["q_proj"](self.v_proj(torch.relu(self.q_proj(x))))


def of_peft(**settings: object) -> nn.Module:
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings})
    model = peft.get_peft_model(Model(), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2, "block.q_proj": 4}, "alpha_pattern": {"v_proj": 5}},
        {"target_modules": ["v_proj"], "lora_dropout": 0.1},
    ],
)
def test_peft_writes_and_we_read(settings, tmp_path):
    theirs = of_peft(**settings)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = noble_fx.load_peft(Model().eval(), tmp_path / "adapter")
    torch.testing.assert_close(ours.double()(X.double()), theirs.double()(X.double()), rtol=1e-12, atol=1e-12)
    assert all(".adapters." in name for name, p in ours.named_parameters() if p.requires_grad)
    assert all(site.unfused == "" for site in noble_fx.sites(ours) if site.selected)


@pytest.mark.parametrize("settings", [{}, {"rslora": False}, {"select": ["q_proj"]}, {"rank_pattern": {"v_proj": 3}}])
def test_we_write_and_peft_reads(settings, tmp_path):
    ours = fill(adapted(Model().eval(), alpha=4, **settings))
    folder = noble_fx.save_peft(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(Model(), folder).eval()
    torch.testing.assert_close(theirs.double()(X.double()), ours.double()(X.double()), rtol=1e-12, atol=1e-12)
    again = noble_fx.load_peft(Model().eval(), folder)
    assert torch.equal(again.double()(X.double()), ours(X.double()))


def test_onto_a_model_with_branches_and_back(tmp_path):
    def with_noble():
        return noble_fx.transform(Model().eval(), rank=4, select=["q_proj"], seed=0)

    theirs = of_peft()
    theirs.save_pretrained(tmp_path / "adapter")
    ours, x = noble_fx.load_peft(with_noble(), tmp_path / "adapter", adapter="theirs"), torch.randn(3, 12)
    delta = theirs.base_model.model.q_proj.get_delta_weight("default")
    expected = with_noble().q_proj(x) + nn.functional.linear(x, delta)
    torch.testing.assert_close(ours.q_proj(x), expected, rtol=1e-5, atol=1e-6)
    again = noble_fx.load_peft(Model(), noble_fx.save_peft(ours, tmp_path / "ours", adapter="theirs"))
    torch.testing.assert_close(again.double()(X.double()), theirs.double()(X.double()), rtol=1e-12, atol=1e-12)


def test_what_peft_trains_on_a_model_with_branches_is_no_site_of_ours():
    model = peft.get_peft_model(noble(), peft.LoraConfig(r=2, target_modules=["0"]))
    assert all(".lora_" not in site.fqn for site in noble_fx.sites(model) if site.selected)


def test_a_transposed_weight(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
    torch.manual_seed(0)
    plain = transformers.GPT2LMHeadModel(config).eval()
    state, tokens = plain.state_dict(), torch.tensor([[1, 2, 3]])
    ours = fill(noble_fx.transform(plain, branch="lora", rank=2, alpha=2, select="attention"))
    folder = noble_fx.save_peft(ours, tmp_path / "adapter")
    base = transformers.GPT2LMHeadModel(config).eval()
    base.load_state_dict(state, strict=False)
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=1e-4, atol=1e-5)


def changed(model: nn.Module) -> bool:
    return any(".adapters." in key for key in model.state_dict()) or not all(
        p.requires_grad for p in model.parameters()
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 3)), "has a part for q_proj, which is no linear layer here"),
        (lambda: nn.ModuleDict({"q_proj": nn.Linear(12, 21), "v_proj": nn.Linear(21, 12)}), "has 12 → 20 for q_proj"),
    ],
)
def test_a_model_that_it_does_not_fit_is_named_and_left(model, reason, tmp_path):
    of_peft(target_modules=r"(q|v)_proj").save_pretrained(tmp_path / "adapter")
    made = model()
    with pytest.raises(CheckpointError, match=reason):
        noble_fx.load_peft(made, tmp_path / "adapter")
    assert not changed(made)


def test_dora_is_refused_with_the_way_out(tmp_path):
    of_peft(use_dora=True).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"use_dora is set, and a plain LoRA is read\. peft's convert_to_lora"):
        noble_fx.load_peft(Model(), tmp_path / "adapter")


def test_names_that_are_taken_or_none(tmp_path):
    ours = adapted(Model())
    folder = noble_fx.save_peft(ours, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="load it under another name"):
        noble_fx.load_peft(ours, folder)
    with pytest.raises(ConfigError, match="other is no adapter of this model"):
        noble_fx.save_peft(ours, tmp_path / "b", adapter="other")
    with pytest.raises(CheckpointError, match="exists"):
        noble_fx.save_peft(ours, folder)
    assert noble_fx.save_peft(ours, folder, overwrite=True) == folder


def test_what_such_a_folder_cannot_hold(tmp_path):
    model = adapted(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)}))
    with pytest.raises(CheckpointError, match="beside no layer with a weight"):
        noble_fx.save_peft(model, tmp_path / "adapter")

"""The Trainer trains branches at their own rates, saves and goes on."""

from __future__ import annotations

import copy

import pytest
import torch

import noble_fx
from noble_fx import ConfigError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

CONFIG = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1} | {
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip


class NobleTrainer(noble_fx.NobleTrainerMixin, transformers.Trainer):
    pass


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))


def trainer(folder, steps=4, kind=NobleTrainer, model=None, **given):
    torch.manual_seed(1)
    rows = torch.randint(32, (16, 8))
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, weight_decay=0.1,
        lr_scheduler_type="cosine", save_steps=2, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        seed=0,
    )  # fmt: skip
    model = model or noble_fx.transform(llama(), rank=4, seed=0)
    return kind(model=model, args=arguments, train_dataset=data, **given)


def test_branches_are_in_groups_of_their_own_with_the_trainers_decay_for_the_rest(tmp_path):
    made, plain = trainer(tmp_path), trainer(tmp_path, kind=transformers.Trainer, model=llama())
    groups, theirs = made.create_optimizer().param_groups, plain.create_optimizer().param_groups
    assert type(made.optimizer) is type(plain.optimizer)
    expected = noble_fx.param_groups(made.model, lr=1e-2, weight_decay=0.1, base=[])
    assert [g["lr_scale"] for g in groups[2:]] == [g["lr_scale"] for g in expected]
    assert [g["lr"] for g in groups[2:]] == [g["lr"] for g in expected]
    for group, own in zip(groups[:2], theirs, strict=True):
        assert group["weight_decay"] == own["weight_decay"]
        assert [p.shape for p in group["params"]] == [p.shape for p in own["params"]]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in made.model.parameters())


def test_rates_keep_their_ratios_while_it_trains(tmp_path):
    made = trainer(tmp_path)
    before = copy.deepcopy(made.model.state_dict())
    made.train()
    base = next(g["lr"] for g in made.optimizer.param_groups if g["lr_scale"] == 1.0)
    assert base < 1e-2
    for group in made.optimizer.param_groups:
        assert group["lr"] == pytest.approx(base * group["lr_scale"])
    assert all(not torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_stopped_and_resumed_it_is_the_same_training(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    resumed = trainer(tmp_path / "whole", model=noble_fx.transform(llama(), rank=4, seed=5))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, value), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=name)


def test_a_model_without_branches_and_an_optimizer_that_is_given_stay_the_trainers(tmp_path):
    made = trainer(tmp_path, model=llama())
    assert len(made.create_optimizer().param_groups) == 2
    model = noble_fx.transform(llama(), rank=4, seed=0)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    made = trainer(tmp_path, model=model, optimizers=(own, None))
    assert made.create_optimizer() is own
    assert len(own.param_groups) == 1


def test_an_optimizer_without_groups_is_refused(tmp_path):
    class Odd(transformers.Trainer):
        def create_optimizer(self, model=None):
            return object()

    class Mine(noble_fx.NobleTrainerMixin, Odd):
        pass

    with pytest.raises(ConfigError, match=r"object takes no groups of branches; give the Trainer optimizers="):
        trainer(tmp_path, kind=Mine).create_optimizer()


def test_an_optimizer_that_only_stands_for_others_is_refused(tmp_path):
    """As with optim="galore_adamw_layerwise": each parameter is stepped by one of its own, in a hook."""
    kind = transformers.trainer_pt_utils.LayerWiseDummyOptimizer
    made = trainer(tmp_path, optimizer_cls_and_kwargs=(kind, {"optimizer_dict": {}}))
    with pytest.raises(ConfigError, match="LayerWiseDummyOptimizer takes no groups of branches"):
        made.create_optimizer()


class Noting(torch.optim.SGD):
    """It writes something beside each parameter when it is made."""

    what = 0

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["noted"] = self.what


def test_what_an_optimizer_numbered_keeps_its_number(tmp_path):
    """As apollo-torch's does with its seeds."""
    made = trainer(tmp_path, optimizer_cls_and_kwargs=(Noting, {"lr": 1e-2}))
    made.create_optimizer()
    assert {group["lr_scale"] for group in made.optimizer.param_groups} > {1.0}
    assert all("noted" in made.optimizer.state[p] for p in made.model.parameters())


def test_an_optimizer_with_moments_is_refused(tmp_path):
    kind = type("Begun", (Noting,), {"what": torch.zeros(1)})
    with pytest.raises(ConfigError, match="Begun takes no groups of branches"):
        trainer(tmp_path, optimizer_cls_and_kwargs=(kind, {"lr": 1e-2})).create_optimizer()


def test_the_mixin_comes_first():
    with pytest.raises(ConfigError, match=r"write class Late\(noble_fx.NobleTrainerMixin, Trainer\)"):

        class Late(transformers.Trainer, noble_fx.NobleTrainerMixin):
            pass


def test_a_given_optimizer_without_multipliers_is_warned_of(tmp_path):
    model = noble_fx.transform(llama(), rank=4)
    given = trainer(tmp_path, model=model, optimizers=(torch.optim.AdamW(model.parameters()), None))
    with pytest.warns(UserWarning, match="branches in groups without their multipliers"):
        given.create_optimizer()


def test_a_checkpoint_of_other_branches_is_not_gone_on_with(tmp_path):
    trainer(tmp_path / "run", steps=2, model=noble_fx.transform(llama(), rank=4, seed=0)).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    for settings, message in (
        ({"rank": 2, "seed": 0}, r"other settings: rank 4, not 2. Go on with .*from_pretrained"),
        ({"rank": 4, "seed": 0, "act": "gelu"}, r"act 'cosnet', not 'gelu'"),
    ):
        other = trainer(tmp_path / "run", model=noble_fx.transform(llama(), **settings))
        with pytest.raises(ConfigError, match=message):
            other.train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ConfigError, match="has branches, and the model has none"):
        trainer(tmp_path / "run", model=llama()).train(resume_from_checkpoint=True)
    again = noble_fx.from_pretrained(transformers.LlamaForCausalLM, checkpoint)
    trainer(tmp_path / "run", model=again).train(resume_from_checkpoint=checkpoint)

"""Adapters side by side: what they compute, how they are switched, and that their numbers stay what they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.branches.adapters import Adapter, Adapters, drawn_adapter
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError

K, N = 7, 5


def adapter(rank: int = 3, **settings: object) -> Adapter:
    made = Adapter(K, N, NobleConfig(branch="lora", **settings), rank)
    nn.init.normal_(made.up)
    return made


def both() -> Adapters:
    torch.manual_seed(0)
    adapters = Adapters(K, N)
    adapters.add("a", adapter(3, alpha=8))
    adapters.add("b", adapter(2, alpha=4, rslora=False))
    return adapters


def test_they_start_as_peft_draws_them_and_add_nothing():
    torch.manual_seed(0)
    made = Adapter(K, N, NobleConfig(branch="lora"), 3)
    assert not made.up.any()
    assert 0 < made.down.abs().max() <= K**-0.5


@pytest.mark.parametrize(("settings", "scale"), [({}, 8.0), ({"alpha": 6}, 3.0), ({"alpha": 6, "rslora": False}, 1.5)])
def test_the_scale(settings, scale):
    assert adapter(4, **settings).scale == scale


@pytest.mark.parametrize("rows", [None, slice(1, 4)])
@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 0.5}, {"b": 2.0}, {}])
def test_they_add_up_by_their_weights(weights, rows):
    adapters, x = both().double(), torch.randn(4, K, dtype=torch.float64)
    adapters.weigh(weights)
    truth = torch.zeros(4, N, dtype=torch.float64)
    for (name, each), scale in zip(adapters.named().items(), (8 / 3**0.5, 4 / 2), strict=True):
        truth = truth + weights.get(name, 0) * scale * F.linear(F.linear(x, each.down), each.up)
    torch.testing.assert_close(adapters(x, rows), truth if rows is None else truth[:, rows], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(F.linear(x, adapters.merged()), truth, rtol=1e-12, atol=1e-13)


def test_a_switch_writes_the_same_buffer():
    adapters = both()
    gate = adapters.gate
    adapters.weigh({"a": 0.5})
    assert adapters.gate is gate
    assert gate[:3].tolist() == pytest.approx([0.5 * 8 / 3**0.5] * 3)
    assert not gate[3:].any()


def test_what_is_off_does_not_learn_and_learns_as_before_once_it_is_on():
    adapters = both()
    adapters.a.down.requires_grad_(False)  # LoRA-FA
    adapters.weigh({"b": 1.0})
    assert not any(p.requires_grad for p in adapters.a.parameters())
    adapters.weigh({"b": 1.0})
    adapters.weigh({"a": 1.0})
    assert (adapters.a.down.requires_grad, adapters.a.up.requires_grad) == (False, True)
    assert not any(p.requires_grad for p in adapters.b.parameters())


def test_the_scale_is_not_rounded_with_the_model():
    adapters = both().bfloat16()
    assert adapters.gate.dtype == torch.float32
    assert adapters.gate[0].item() == torch.tensor(8 / 3**0.5).item()
    assert adapters.double().gate[0].item() == 8 / 3**0.5
    assert adapters(torch.randn(2, K, dtype=torch.float64)).dtype == torch.float64


def test_the_gate_has_its_numbers_after_the_meta_device():
    with torch.device("meta"):
        adapters = both()
    assert adapters.to_empty(device="cpu").gate.tolist() == both().gate.tolist()


def test_dropout_draws_in_training_alone():
    adapters, x = Adapters(K, N), torch.randn(64, K)
    adapters.add("a", adapter(dropout=0.5))
    assert adapters.draws
    assert not torch.equal(adapters(x), adapters(x))
    assert not adapters.eval().draws
    assert torch.equal(adapters(x), adapters(x))


def test_a_seed_and_a_name_are_the_same_numbers():
    def drawn(seed, adapter_name, place):
        config = NobleConfig(branch="lora", seed=seed, adapter=adapter_name)
        return drawn_adapter(K, N, config, 3, place).down

    assert torch.equal(drawn(1, "a", "q"), drawn(1, "a", "q"))
    assert not torch.equal(drawn(1, "a", "q"), drawn(1, "b", "q"))
    assert not torch.equal(drawn(1, "a", "q"), drawn(1, "a", "k"))


@pytest.mark.parametrize(
    ("name", "reason"), [("a", "is an adapter 'a' already"), ("gate", "torch's own"), ("x.y", "must be a name")]
)
def test_names_that_cannot_be(name, reason):
    with pytest.raises(ConfigError, match=reason):
        both().add(name, adapter())


def test_words_for_them():
    adapters = both()
    adapters.weigh({"b": 0.5})
    assert adapters.told() == "a r 3 (off), b r 2 × 0.5"

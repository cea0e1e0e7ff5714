"""Gates behind σ that are pressed to zero."""

import pytest
import torch

import noble_fx
from noble_fx import CheckpointError, ConfigError
from noble_fx.training.rules import Gates
from noble_fx.training.rules.channels import gate
from noble_fx.training.rules.gates import shrink
from tests.models import tiny, tokens, transformed


def test_the_step_is_the_soft_threshold_and_not_the_released_codes():
    weight = torch.tensor([0.19, -0.19, 0.1, -0.05, 0.0, 1.0, -1.0], dtype=torch.float64)
    wanted = torch.tensor([0.09, -0.09, 0.0, 0.0, 0.0, 0.9, -0.9], dtype=torch.float64)
    shrink(weight, 0.1)
    torch.testing.assert_close(weight, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kappa", [0.0, 0.03, 0.5])
def test_it_is_the_proximal_step_of_the_sum_of_magnitudes(kappa):
    """What comes out minimises κ‖v‖₁ + ½‖v − w‖²."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, generator=generator, dtype=torch.float64)
    out = weight.clone()
    shrink(out, kappa)

    def cost(value):
        return kappa * value.abs().sum() + 0.5 * (value - weight).square().sum()

    for size in (1e-4, 1e-2, 0.3):
        for _ in range(20):
            assert cost(out) <= cost(out + size * torch.randn(40, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("act", ["cosnet", "gelu", "cos"])
def test_it_changes_nothing_by_being_there_and_learns(act):
    plain, model = transformed(act=act).double(), transformed(act=act).double()
    rule = Gates(model)
    assert torch.equal(model(tokens()), plain(tokens()))
    groups = noble_fx.param_groups(model, lr=1e-2)
    held = gate(model.blocks[0].fc1.noble).scale
    assert any(held is parameter for group in groups for parameter in group["params"])
    optimizer = torch.optim.AdamW(groups)
    rule.kappa = 5e-3
    rule.on(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens()).square().sum().backward()
        optimizer.step()
    assert (held != 1).all()
    after = model(tokens())
    assert rule.close() is model
    torch.testing.assert_close(model(tokens()), after, rtol=1e-11, atol=1e-11)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.blocks[0].fc1.noble.unfused == ""


def test_a_large_kappa_silences_all_and_they_are_counted():
    model = transformed()
    rule = Gates(model, kappa=0.4)
    assert set(rule.left().values()) == {4}
    with torch.no_grad():
        gate(model.blocks[0].fc1.noble).scale[1] = 0.3
    rule.after_step()
    assert rule.left()["blocks.0.fc1.noble"] == 3
    rule.after_step()
    rule.after_step()
    assert set(rule.left().values()) == {0}
    assert torch.equal(model(tokens()), tiny()(tokens()))


def test_a_file_knows_no_gates(tmp_path):
    model = transformed()
    rule = Gates(model)
    with pytest.raises(CheckpointError, match="masks or gates of a training rule"):
        noble_fx.save(model, tmp_path / "gated")
    rule.close()
    noble_fx.save(model, tmp_path / "gated")


@pytest.mark.parametrize("kappa", [-0.1, float("nan"), True, "1"])
def test_a_kappa_that_is_none(kappa):
    with pytest.raises(ConfigError, match="must be a number, 0 or more"):
        Gates(transformed(), kappa=kappa)
    rule = Gates(transformed())
    rule.kappa = kappa
    with pytest.raises(ConfigError, match="must be a number, 0 or more"):
        rule.after_step()

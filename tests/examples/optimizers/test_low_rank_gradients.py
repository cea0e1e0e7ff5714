"""GaLore, APOLLO and Fira: their keys are on the base's matrices alone, and what they say of themselves holds."""

from pathlib import Path

import pytest
import pytorch_optimizer
import torch

import noble_fx
from examples.optimizers.low_rank_gradients import LOW_RANK, build, kept, low_rank_groups, main, train

NAMES = ("GaLore", "APOLLO", "Fira")


def made(name: str, **changed):
    model = build()
    return model, getattr(pytorch_optimizer, name)(low_rank_groups(model, 5e-3, {**LOW_RANK, **changed}))


def test_keys_are_on_the_weights_with_a_branch_and_on_nothing_else():
    model = build()
    groups = low_rank_groups(model, 5e-3, LOW_RANK)
    (projected,) = [group for group in groups if "rank" in group]
    assert [id(p) for p in projected["params"]] == [id(model[0].weight), id(model[2].weight)]
    assert LOW_RANK.items() <= projected.items()
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_thin_for_the_base_and_whole_for_branches(name):
    model, optimizer = made(name)
    train(model, optimizer, steps=1)
    for parameter_name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        projected = parameter_name in ("0.weight", "2.weight")
        assert ("projector" in state) == projected, parameter_name
        thin = (256, 8) if parameter_name == "0.weight" else (8, 256)
        assert state["exp_avg"].shape == (thin if projected else parameter.shape), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_at_the_ratios_of_the_groups(name):
    model, optimizer = made(name)
    noble_fx.scale_lr(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model[0].weight)] == pytest.approx(4e-3)  # 2e-2 for 5e-3
    assert rates[id(model[0].bias)] == pytest.approx(1e-3)
    noble_fx.scale_lr(optimizer, 5e-3)
    assert train(model, optimizer, steps=100) < 0.7 * train(build(), torch.optim.SGD(model.parameters(), lr=0.0), 100)


def test_at_full_rank_fira_is_galore():
    """Nothing of the gradient is left over then, up to the projector's own scale."""
    weights = []
    for name in ("GaLore", "Fira"):
        model, optimizer = made(name, rank=64, scale=1.0)
        train(model, optimizer, steps=5)
        weights.append(model[0].weight)
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_less_is_kept(capsys):
    main()
    lines = capsys.readouterr().out.splitlines()
    numbers = {line.split()[0]: int(line.split()[3].replace(",", "")) for line in lines}
    page = (Path(__file__).parents[3] / "docs" / "neighbours.md").read_text(encoding="utf-8")
    thin = sorted(numbers[name] for name in NAMES)
    assert f"keeps\n  {numbers['AdamW']:,} numbers, the three {thin[0]:,} to {thin[-1]:,}" in page


def test_what_is_kept_counts_projectors():
    weight = torch.nn.Parameter(torch.zeros(16, 8))
    optimizer = pytorch_optimizer.GaLore([{"params": [weight], **LOW_RANK, "rank": 2}])
    weight.grad = torch.randn(16, 8)
    optimizer.step()
    assert kept(optimizer) == 2 * 16 * 2 + 2 * 8

"""The tasks of the study: batches that depend on seed and step alone, and what is held out."""

from __future__ import annotations

import builtins

import pytest
import torch

from benchmarks.effect import tasks
from benchmarks.effect.tasks import HIDDEN, NOT_ASKED, TASKS


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_depends_on_seed_and_step_alone(name):
    task = TASKS[name]
    first, random = task.batch(3, 1), torch.get_rng_state()
    again, later, other = task.batch(3, 1), task.batch(4, 1), task.batch(3, 2)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], later[0])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(random, torch.get_rng_state())  # a model that draws sees the same numbers


@pytest.mark.parametrize("name", TASKS)
def test_every_model_learns_its_task(name):
    task = TASKS[name]
    torch.manual_seed(0)
    model = task.build(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for step in range(30):
        loss = task.loss(model, task.batch(step % 3, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_only_hidden_bytes_are_asked_for():
    inputs, targets = TASKS["masked128"].batch(0, 0)
    hidden = inputs == HIDDEN
    assert 0.15 < hidden.float().mean() < 0.35
    assert bool((targets[hidden] < 256).all())
    assert bool((targets[~hidden] == NOT_ASKED).all())


def test_an_encoder_sees_both_sides_and_a_gpt_one():
    for name, both in (("masked128", True), ("bytes128", False)):
        task = TASKS[name]
        model = task.build(32).eval()
        inputs = task.batch(0, 0)[0]
        changed = inputs.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 256
        assert torch.equal(model(inputs)[:, 0], model(changed)[:, 0]) is not both


def test_held_out_digits_are_never_learned_from():
    (images, _), (held_out, _) = tasks._digits()
    learned = {image.numpy().tobytes() for image in images}
    assert sum(image.numpy().tobytes() in learned for image in held_out) == 0
    assert len(images) + len(held_out) == 1797


def test_patches_are_parts_of_the_image():
    image = torch.arange(64.0).view(1, 8, 8)
    patches = tasks._patches(image)
    assert patches.shape == (1, 16, 4)
    assert patches[0, 0].tolist() == [0, 1, 8, 9]
    assert patches[0, 5].tolist() == [18, 19, 26, 27]


def test_mixup_gives_shares_of_classes():
    inputs, targets = TASKS["digits-mixup"].batch(0, 0)
    assert torch.allclose(targets.sum(1), torch.ones(len(targets)))
    assert bool(((targets > 0).sum(1) <= 2).all())
    assert bool(((targets > 0).sum(1) == 2).any())
    assert inputs.shape == (32, 16, 4)


def test_a_missing_data_set_is_named(monkeypatch):
    load = builtins.__import__

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    tasks._digits.cache_clear()
    with pytest.raises(FileNotFoundError, match="pip install scikit-learn"):
        TASKS["digits"].batch(0, 0)

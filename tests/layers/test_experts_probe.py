"""A small copy of a module of experts tells whether its class computes what is known here."""

import re

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts

from noble_fx.layers import experts_probe
from noble_fx.layers.experts_probe import EXPERTS, HIDDEN, INNER, why_another_maths
from tests.layers.test_experts import CLASSES, config, experts


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    monkeypatch.setattr(experts_probe, "_KNOWN", {})


def own(small: nn.Module, inputs: tuple) -> torch.Tensor:
    return type(small).forward.__wrapped__(small, *inputs)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_copy_runs_on_a_few_numbers_and_leaves_the_module_alone(kind):
    module, seen = experts(kind), []
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()

    def ours(small, inputs):
        seen.append({name: tuple(p.shape) for name, p in small.named_parameters()})
        return own(small, inputs)

    assert why_another_maths(module, type(module), ours) is None
    (shapes,) = seen
    assert all(shape[0] in (EXPERTS, HIDDEN) and shape[-1] in (HIDDEN, INNER, 2 * INNER) for shape in shapes.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_on_the_meta_device_and_under_autocast_alike():
    with torch.device("meta"):
        module = MuseSparkExperts(config())
        assert why_another_maths(module, type(module), own) is None
    experts_probe._KNOWN.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert why_another_maths(module, type(module), own) is None


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        (lambda small, inputs: own(small, inputs) * 1.001, "computes something else"),
        (lambda small, inputs: own(small, inputs).flatten(), "computes something else"),
        (lambda small, inputs: small.absent, "could not be run to compare it.*absent"),
    ],
)
def test_what_differs_is_said(ours, reason):
    module = experts()
    refusal = why_another_maths(module, type(module), ours)
    assert refusal is not None
    assert re.search(reason, refusal.reason)


def test_a_class_is_asked_once_for_each_of_its_settings():
    module, calls = experts(), []

    def ours(small, inputs):
        calls.append(1)
        return own(small, inputs)

    for _ in range(2):
        why_another_maths(module, type(module), ours)
    assert len(calls) == 1
    module.num_experts = 7  # a setting, be it one that changes nothing here
    why_another_maths(module, type(module), ours)
    assert len(calls) == 2


def test_widths_that_are_one_number():
    settings = config()
    settings.intermediate_size = settings.hidden_size // 2  # 2 I = H
    module = CLASSES["gated"](settings)
    assert why_another_maths(module, type(module), own) is None

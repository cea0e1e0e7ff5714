"""Layer after layer: each made for the inputs that the compressed model gives it."""

import copy

import pytest
import torch

import noble_fx
from noble_fx.compressing.order import Order
from noble_fx.compressing.sequence import stages
from tests.compressing.models import batches, exact, inputs_of, with_branches

GIVEN = batches(8)
ORDER = Order(
    (("blocks.0.q_proj", "blocks.0.k_proj"), ("blocks.0.fc1",), ("blocks.1.fc1",), ("head",)),
    True,
)


def test_stages():
    model = exact()
    assert stages(model, ORDER, by_block=False) == [list(group) for group in ORDER.groups]
    assert stages(model, ORDER, by_block=True) == [
        ["blocks.0.q_proj", "blocks.0.k_proj", "blocks.0.fc1"],
        ["blocks.1.fc1"],
        ["head"],
    ]


@pytest.mark.parametrize("make", [exact, with_branches])
def test_the_error_is_that_on_the_compressed_inputs(make):
    model = make()
    done = noble_fx.compress(model, GIVEN, rank=6, sequential=True)
    for name in ("blocks.0.fc2", "blocks.1.o_proj", "blocks.1.fc2"):
        x = inputs_of(done, name, GIVEN)
        y, new = model.get_submodule(name)(x).detach(), done.get_submodule(name)
        error = (new(x).detach() - y).norm() / (y - y.mean(0)).norm()
        assert new.base.error == pytest.approx(float(error), rel=1e-4)


def test_one_run_knows_the_original_inputs_alone():
    model = exact()
    done = noble_fx.compress(model, GIVEN, rank=6)
    name = "blocks.1.fc2"
    for inputs, same in ((inputs_of(model, name, GIVEN), True), (inputs_of(done, name, GIVEN), False)):
        y, new = model.get_submodule(name)(inputs).detach(), done.get_submodule(name)
        error = float((new(inputs).detach() - y).norm() / (y - y.mean(0)).norm())
        assert (new.base.error == pytest.approx(error, rel=1e-4)) == same


def test_by_block_sees_the_blocks_before():
    model = exact()
    done = noble_fx.compress(model, GIVEN, rank=6, sequential="block")
    mixed = copy.deepcopy(model)
    mixed.blocks[0] = copy.deepcopy(done.blocks[0])
    x = inputs_of(mixed, "blocks.1.fc2", GIVEN)
    y, new = model.blocks[1].fc2(x).detach(), done.blocks[1].fc2
    assert new.base.error == pytest.approx(float((new(x).detach() - y).norm() / (y - y.mean(0)).norm()), rel=1e-4)


@pytest.mark.parametrize("settings", [{"keep": 0.5}, {"error": 0.3}, {"rank": {"fc": 6}}], ids=str)
@pytest.mark.parametrize("sequential", [True, "block"])
def test_every_budget(settings, sequential):
    model = exact()
    before = copy.deepcopy(model.state_dict())
    done = noble_fx.compress(model, GIVEN, sequential=sequential, **settings)
    assert any(site.base for site in noble_fx.sites(done))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if "keep" in settings:
        plan = noble_fx.compress(model, GIVEN, keep=0.5, dry_run=True)
        expected = {entry.site.fqn: entry.rank for entry in plan.entries if entry.rank}
        assert {site.fqn: site.base_rank for site in noble_fx.sites(done) if site.base} == expected
    if "error" in settings:
        assert all(site.base_error <= 0.3 for site in noble_fx.sites(done) if site.base)


@pytest.mark.parametrize("make", [exact, with_branches])
def test_a_mixed_target_is_nearer_to_the_original(make):
    """`saes`, in whose target the original has its part, against the same run without."""
    model = make()

    def off(method):
        done = noble_fx.compress(model, GIVEN, rank=6, method=method, sequential=True)
        with torch.no_grad():
            return sum(float((done(batch) - model(batch)).square().sum()) for batch in GIVEN)

    assert off("saes") < off("activations")


def test_batches_that_come_once_are_kept():
    model = exact()
    once = noble_fx.compress(model, iter(GIVEN), rank=6, sequential=True)
    often = noble_fx.compress(model, GIVEN, rank=6, sequential=True)
    assert torch.equal(once(GIVEN[0]), often(GIVEN[0]))

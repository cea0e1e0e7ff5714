import pytest

from noble_fx.branches.channels import Resized
from noble_fx.training.changing.parameter_changes import added, exchanged, gone
from tests.models import transformed


def test_rates_go_by_the_ranks():
    branch = transformed().blocks[0].fc1.noble
    larger = branch.resized(8)
    assert isinstance(larger, Resized)
    changes = {change.name: change for change in exchanged("fc1", branch, larger)}
    assert changes["fc1.up"].ratio == pytest.approx(0.5**0.6)
    assert changes["fc1.act.mixer.weight"].ratio == pytest.approx(0.5**0.45)
    assert changes["fc1.down"].ratio == 1
    assert changes["fc1.up"].new is larger.branch.up
    assert changes["fc1.up"].axes == larger.axes["up"]


def test_one_that_comes_goes_with_one_of_its_role():
    model = transformed()
    first, second = model.blocks[0].fc1.noble, model.blocks[0].q_proj.noble
    second.up.requires_grad_(False)
    changes = {change.name: change for change in added("x", model.blocks[1].fc2.noble, [second, first])}
    assert changes["x.up"].old is first.up
    assert changes["x.act.first.phase"].old is second.act.first.phase
    assert all(change.added for change in changes.values())
    assert {change.new for change in gone("x", first)} == {None}

"""What every kind of branch is given by its base class."""

import copy
import pickle

import pytest
import torch

import noble_fx
from noble_fx import ConfigError, NobleBranch, NobleConfig, Refusal
from noble_fx.branches.base import FusedForm, Rate, branches_with
from tests.branches.test_kinds import Softsign

CONFIG = NobleConfig(rank=2)


def test_shapes_and_counts_need_no_values():
    branch = Softsign.on_meta(8, 6, 2, CONFIG)
    assert all(p.is_meta for p in branch.parameters())
    shapes = {name: tuple(p.shape) for name, p in branch.named_parameters()}
    assert shapes == {"down": (2, 8), "up": (6, 2), "gain": (6,)}
    assert Softsign.parameter_count(8, 6, 2, CONFIG) == 2 * 8 + 6 * 2 + 6


def test_what_a_kind_does_not_say_has_an_answer():
    branch = Softsign(8, 6, 2, CONFIG)
    assert branch.fused_form() == Refusal("branches of kind 'softsign' have no fused form")
    assert branch.fold() == Refusal("branches of kind 'softsign' have no constants to fold")
    assert branch.merged() == Refusal("branches of kind 'softsign' are no affine map of their input")
    unsaid = Refusal("branches of kind 'softsign' do not say what their last matrix reads")
    assert branch.before_up(torch.ones(1, 8)) == unsaid
    assert super(Softsign, branch).parameter_roles().__next__() == ("down", branch.down, Rate(1.0, True))
    assert branch.label == "softsign"
    assert repr(branch) == "Softsign(8 -> 2 (softsign) -> 6)"


def test_what_it_computes_on_the_way_is_its_output_at_least():
    branch, x = Softsign(8, 6, 2, CONFIG), torch.randn(3, 8)
    for rows in (None, slice(1, 4)):
        ((name, output),) = branch.stages(x, rows)
        assert name == "branch"
        assert torch.equal(output, branch(x, rows))

    class Doubled(NobleBranch):
        def forward(self, x, rows=None):
            return 2 * super().forward(x, rows)

    doubled = Doubled(8, 6, 2, CONFIG)
    ((_, output),) = doubled.stages(x)  # not its parent's h and σ
    assert torch.equal(output, doubled(x))


def test_a_kind_without_a_name_has_that_of_its_class():
    nameless = type("Nameless", (Softsign,), {"kind": ""})
    assert nameless.kind == nameless(8, 6, 2, CONFIG).label == "Nameless"
    assert Softsign.kind == "softsign"


def test_how_it_runs_is_decided_once():
    branch = NobleBranch(8, 6, 2, CONFIG)
    assert branch.unfused
    branch.prepare()
    form = branch.fused_form()
    assert isinstance(form, FusedForm)
    assert (branch.unfused, branch.key) == ("", form.key)
    branch.prepare("its place says no")
    assert (branch.unfused, branch.key) == ("its place says no", "")


def test_the_names_of_a_fused_form_are_its_own_tensors():
    for act in noble_fx.activation_names():
        branch = NobleBranch(8, 6, 2, NobleConfig(rank=2, act=act, preset="reference"))
        form = branch.fused_form()
        names = [form.down, form.down_bias, form.up, form.up_bias, *form.act]
        state = dict(branch.state_dict())
        assert {name for name in names if name} == set(state), act


def test_a_redraw_is_a_draw_and_a_folded_branch_has_none():
    torch.manual_seed(0)
    branch = NobleBranch(8, 6, 2, CONFIG)
    before = {name: value.clone() for name, value in branch.state_dict().items()}
    torch.manual_seed(0)
    with torch.no_grad():
        branch.redraw()
    assert all(torch.equal(value, before[name]) for name, value in branch.state_dict().items())
    assert branch.fold() is None
    with pytest.raises(ConfigError, match="a folded model is for inference"):
        branch.redraw()


def test_folding_changes_nothing_but_constants():
    branch, x = NobleBranch(8, 6, 3, NobleConfig(rank=3, preset="reference")).double(), torch.randn(5, 8).double()
    expected = branch(x)
    assert branch.fold() is None
    assert branch.folded
    torch.testing.assert_close(branch(x), expected, rtol=1e-12, atol=1e-12)
    assert "folded" in repr(branch)
    assert branch.fold() == Refusal("σ (cosnet) has no constants to fold")


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_a_linear_branch_merges(preset):
    branch = NobleBranch(8, 6, 3, NobleConfig(rank=3, act="identity", preset=preset)).double()
    x, (weight, bias) = torch.randn(5, 8).double(), branch.merged()
    torch.testing.assert_close(torch.nn.functional.linear(x, weight, bias), branch(x), rtol=1e-12, atol=1e-12)
    assert NobleBranch(8, 6, 3, CONFIG).merged() == Refusal("σ (cosnet) is not linear")


def test_a_branch_is_found_by_a_tensor_of_its_own_wherever_it_came_from():
    branch = NobleBranch(8, 6, 2, CONFIG)
    copies = [copy.deepcopy(branch), pickle.loads(pickle.dumps(branch))]
    for one in (branch, *copies):
        assert branches_with([one.down]) == [one]
    assert branches_with([torch.empty(2, 8)]) == []

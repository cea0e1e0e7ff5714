"""Kinds of branch by name: one defined here, in a user's file, through everything that a branch goes through."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx import Branch, CheckpointError, ConfigError, Refusal
from noble_fx.attach.attach import named_branches
from noble_fx.branches import kinds
from noble_fx.branches.base import Rate
from noble_fx.branches.noble import NobleBranch
from tests.models import Tiny, tiny, tokens


class Softsign(Branch):
    """gain ⊙ softsign(x Dᵀ) Uᵀ: no σ of its own, no fused form, one rate of its own."""

    kind = "softsign"

    def __init__(self, in_features, out_features, rank, config, role="other"):
        super().__init__(in_features, out_features, rank, config, role)
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.gain = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.down, std=self.in_features**-0.5)
        nn.init.normal_(self.up, std=0.1)
        nn.init.ones_(self.gain)

    def forward(self, x, rows=None):
        rows = slice(None) if rows is None else rows
        return self.gain[rows] * F.linear(F.softsign(F.linear(x, self.down)), self.up[rows])

    def parameter_roles(self):
        for name, parameter in self.named_parameters():
            yield name, parameter, Rate(7.0, decay=False) if name == "gain" else Rate()


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    noble_fx.register_branch("softsign", Softsign)


CAPTURES = {"modules": {}, "fx": {}, "export": {"example_inputs": (tokens(),)}}


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_kind_of_ones_own_runs_in_every_capture(capture):
    plain = tiny()
    expected = plain(tokens())
    model = noble_fx.transform(
        copy.deepcopy(plain), rank=4, branch=Softsign, seed=0, capture=capture, **CAPTURES[capture]
    )
    branches = named_branches(model)
    assert {type(branch) for branch in branches.values()} == {Softsign}
    assert len(branches) == 12
    added = model(tokens())
    assert not torch.allclose(added, expected)
    with noble_fx.disabled(model):
        torch.testing.assert_close(model(tokens()), expected)
    modules = noble_fx.transform(copy.deepcopy(plain), rank=4, branch=Softsign, seed=0)
    torch.testing.assert_close(added, modules(tokens()))
    added.sum().backward()
    assert all(p.grad is not None for branch in branches.values() for p in branch.parameters())
    torch.testing.assert_close(noble_fx.remove(model)(tokens()), expected)


def test_it_is_accounted_for():
    model = noble_fx.transform(tiny(), rank=4, branch=Softsign)
    sites = [site for site in noble_fx.sites(model) if site.selected]
    assert {site.action for site in sites} == {"add"}
    assert {site.unfused for site in sites} == {"branches of kind 'softsign' have no fused form"}
    assert sum(site.params for site in sites) == sum(
        4 * (site.in_features + site.out_features) + site.out_features for site in sites
    )
    assert "eager branch at 12 sites: branches of kind 'softsign' have no fused form" in str(noble_fx.explain(model))


def test_its_parameters_learn_at_its_own_rates():
    model = noble_fx.transform(tiny(), rank=4, branch=Softsign)
    groups = {group["name"]: group for group in noble_fx.param_groups(model, lr=0.1, weight_decay=0.5)}
    gain = groups["softsign.gain ×7"]
    assert (gain["lr"], gain["weight_decay"], len(gain["params"])) == (pytest.approx(0.7), 0.0, 12)
    assert groups["softsign.up ×1"]["lr"] == pytest.approx(0.1)


def test_it_is_saved_by_its_name_and_loaded(tmp_path, registered):
    model = noble_fx.transform(tiny(), rank=4, branch="softsign")
    noble_fx.save(model, tmp_path / "folder")
    loaded = noble_fx.load(tiny(seed=1), tmp_path / "folder")
    assert torch.equal(loaded(tokens()), model(tokens()))
    with pytest.raises(CheckpointError, match=r"register_branch\(name, class\)"):
        noble_fx.save(noble_fx.transform(tiny(), rank=4, branch=Softsign), tmp_path / "other")


def test_a_folder_of_an_unknown_kind_says_how_to_make_it_known(tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(kinds, "_KINDS", dict(kinds._KINDS))
        noble_fx.register_branch("softsign", Softsign)
        noble_fx.save(noble_fx.transform(tiny(), rank=4, branch="softsign"), tmp_path / "folder")
    with pytest.raises(CheckpointError, match=r"branch='softsign' is unknown.*register_branch"):
        noble_fx.load(tiny(), tmp_path / "folder")


def test_it_is_copied_pickled_reset_and_exported(tmp_path):
    model = noble_fx.transform(tiny(layers=1), rank=4, branch=Softsign, seed=3)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(tokens()), model(tokens()))
    before = model(tokens())
    with torch.no_grad():
        for branch in named_branches(model).values():
            branch.gain.fill_(5.0)
    assert torch.equal(noble_fx.reset_branches(model)(tokens()), before)
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "model.onnx")
    assert report.largest_error < 1e-4
    assert [site.fqn for site in noble_fx.sites(tmp_path / "model.onnx") if site.selected] == [
        site.fqn for site in noble_fx.sites(model) if site.selected
    ]


def test_it_takes_stacked_experts():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 8, 6) / 3)

        def forward(self, x):
            return torch.bmm(x, self.w)

    x = torch.randn(3, 5, 8)
    model = noble_fx.transform(Experts(), rank=2, branch=Softsign, capture="export", example_inputs=(x,), select=["w"])
    branches = list(named_branches(model).values())
    expected = torch.bmm(x, model.w) + torch.stack([branch(x[e]) for e, branch in enumerate(branches)])
    torch.testing.assert_close(model(x), expected)


class Lacking(Branch):
    kind = "lacking"


class WithoutRows(Softsign):
    def forward(self, x):
        return x


class Replacing(Softsign):
    action = "swap"


class WrongShape(Softsign):
    def forward(self, x, rows=None):
        return F.linear(x, self.down)


class Tuple(Softsign):
    def forward(self, x, rows=None):
        return super().forward(x, rows), None


class LeavesOut(Softsign):
    def parameter_roles(self):
        yield "down", self.down, Rate()


class Pairs(Softsign):
    def parameter_roles(self):
        yield from self.named_parameters()


class Numbers(Softsign):
    def parameter_roles(self):
        for name, parameter in self.named_parameters():
            yield name, parameter, 2.0


class WrongConstructor(Softsign):
    def __init__(self, width):
        super().__init__(width, width, 1, None)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (nn.Linear, "branch=Linear must be a name or a subclass of noble_fx.Branch"),
        (Lacking, r"branch Lacking lacks forward\(x, rows=None\) and reset_parameters\(\)"),
        (WithoutRows, "branch WithoutRows lacks forward's argument rows"),
        (Replacing, "branch Replacing has action='swap'; use 'add'"),
        (WrongShape, r"branch WrongShape maps \[3, 8\] to \[3, 2\]"),
        (Tuple, r"branch Tuple maps \[3, 8\] to a tuple"),
        (LeavesOut, "LeavesOut.parameter_roles leaves out 'up', 'gain', which would be in no optimizer group"),
        (Pairs, r"Pairs.parameter_roles yields tuple entries that are no \(role, parameter, Rate"),
        (Numbers, r"Numbers.parameter_roles yields tuple entries that are no \(role, parameter, Rate"),
        (WrongConstructor, "branch WrongConstructor fails for K = 8, N = 6, rank 2: TypeError"),
        ("sofsign", "branch='sofsign' is unknown"),
        (7, "branch=7 must be a name or a subclass"),
    ],
)
def test_what_is_no_branch_is_refused_and_the_model_unchanged(kind, message):
    model: Tiny = tiny()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ConfigError, match=message):
        noble_fx.transform(model, rank=4, branch=kind)
    assert {name: type(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("not a name", Softsign, "is not a name for a kind of branch"),
        ("noble", Softsign, "already a kind of branch of noble_fx"),
        ("lacking", Lacking, "lacks"),
    ],
)
def test_what_cannot_be_registered(name, kind, message):
    with pytest.raises(ConfigError, match=message):
        noble_fx.register_branch(name, kind)
    assert noble_fx.branch_names() == (NobleBranch.kind, "lora")


class Doubled(NobleBranch):
    kind = "doubled"

    def forward(self, x, rows=None):
        return 2 * super().forward(x, rows)


class DoubledAndFused(Doubled):
    """Says that the operator stands for it, which is its own business."""

    fused_form = NobleBranch.fused_form


def test_what_a_parent_says_of_its_forward_is_not_said_of_another():
    layer = noble_fx.transform(nn.Sequential(nn.Linear(8, 6)), rank=2, branch=Doubled, act="identity")[0].double()
    x, branch = torch.randn(3, 8).double(), layer.noble
    torch.testing.assert_close(
        layer(x), F.linear(x, layer.weight, layer.bias) + 2 * branch.up.mm(branch.down).mm(x.T).T
    )
    for refusal in (branch.fused_form(), branch.merged(), branch.fold()):
        assert "branches of kind 'doubled'" in refusal.reason
    assert not isinstance(DoubledAndFused(8, 6, 2, branch.config).fused_form(), Refusal)
    assert isinstance(DoubledAndFused(8, 6, 2, branch.config).fold(), Refusal)


def test_a_branch_that_runs_itself_runs_on_the_meta_device():
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 6)).to("meta"), rank=2, fuse=False)
    assert model(torch.empty(3, 8, device="meta")).shape == (3, 6)
    assert model.bfloat16()(torch.empty(3, 8, device="meta", dtype=torch.bfloat16)).dtype == torch.bfloat16

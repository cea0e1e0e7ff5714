"""Which branches are pairs of matrices that learn together."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.training.rules import Preconditioned
from noble_fx.training.rules.pairs import gradient, pairs
from tests.models import tiny
from tests.one_rank import one_rank
from tests.training.rules.linear import SCALE, model


def test_every_linear_branch_that_learns():
    made = noble_fx.transform(tiny(), rank=4, act="identity", seed=0)
    found = pairs(made)
    assert list(found) == [site.fqn for site in noble_fx.sites(made) if site.selected]
    pair = found["blocks.0.fc1"]
    branch = made.blocks[0].fc1.noble
    assert (pair.down, pair.up, pair.scale) == (branch.down, branch.up, 1.0)
    branch.requires_grad_(False)
    assert "blocks.0.fc1" not in pairs(made)


def test_a_kind_says_its_own_scale():
    assert pairs(model())["0"].scale == SCALE


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"act": "cosnet"}, r"σ \(cosnet\) stands between D and U"),
        ({"act": lambda rank: nn.Identity()}, "the bias of D reaches U too"),
    ],
)
def test_a_branch_that_is_no_product_is_refused_by_name(settings, reason):
    made = noble_fx.transform(tiny(), rank=4, seed=0, preset="reference", **settings)
    with pytest.raises(ConfigError, match=f"the branch at 'blocks.0.q_proj' is no product of two matrices: {reason}"):
        pairs(made)


def test_nonlinear_branches_that_are_frozen_are_in_nobodys_way():
    made = noble_fx.transform(tiny(), rank=4, act="cosnet", seed=0)
    noble_fx.set_trainable(made, "base")
    with pytest.raises(ConfigError, match="no linear branch that learns"):
        pairs(made)


def test_a_kind_that_does_not_say():
    class Plain(noble_fx.Branch):
        def __init__(self, *args):
            super().__init__(*args)
            self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features))
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.zeros_(self.weight)

        def forward(self, x, rows=None):
            return x @ (self.weight if rows is None else self.weight[rows]).mT

    made = noble_fx.transform(tiny(), rank=4, branch=Plain)
    with pytest.raises(ConfigError, match="do not say that they are a product"):
        pairs(made)


def test_hooks_stand_between_the_matrices_and_their_gradients():
    made = noble_fx.transform(tiny(), rank=4, act="identity", seed=0)
    torch.nn.utils.parametrizations.weight_norm(made.blocks[0].fc1.noble, "up")
    with pytest.raises(
        ConfigError, match=r"'blocks\.0\.fc1' is no product of two matrices: the branch is parametrized"
    ):
        pairs(made)


def test_a_shared_matrix_has_no_gradient_of_one_pair():
    made = model(2)
    made[1].noble.down = made[0].noble.down
    with pytest.raises(ConfigError, match="'0' and '1' share a matrix"):
        pairs(made)


def test_shards_are_refused():
    made = noble_fx.transform(tiny(), rank=4, act="identity", seed=0)
    with one_rank() as mesh:
        torch.distributed.fsdp.fully_shard(made, mesh=mesh)
        with pytest.raises(CaptureError, match=r"'blocks\.0\.q_proj' is spread over ranks"):
            pairs(made)


def test_a_gradient_of_what_is_frozen_is_none():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    assert gradient(parameter) is parameter.grad
    assert gradient(parameter.requires_grad_(False)) is None


def test_adapters_are_pairs_alone_and_beside_a_frozen_branch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Linear(16, 12))
    noble_fx.transform(model, rank=3, select=["0"], seed=0)
    noble_fx.transform(model, branch="lora", rank=4, alpha=8, rslora=False, select="all", seed=0)
    found = pairs(model)
    assert list(found) == ["0.default", "1.default"]
    assert {pair.scale for pair in found.values()} == {2.0}
    x, (pair, *_) = torch.randn(5, 12), found.values()
    model(x).square().sum().backward()
    assert gradient(pair.up) is not None
    noble_fx.use_adapters(model, {"default": 0.5})
    assert {pair.scale for pair in pairs(model).values()} == {1.0}
    model[0].noble.up.requires_grad_(True)
    with pytest.raises(noble_fx.ConfigError, match="learns together with adapters beside it"):
        pairs(model)


def test_a_preconditioned_step_moves_adapters_beside_a_branch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Linear(16, 12)).double()
    noble_fx.transform(model, rank=3, select="all", seed=0)
    noble_fx.transform(model, branch="lora", rank=4, select="all", seed=0)
    rule = Preconditioned(model, rule="riemannian")
    optimizer = torch.optim.SGD(noble_fx.param_groups(model, lr=1e-3))
    rule.on(optimizer)
    x = torch.randn(32, 12, dtype=torch.float64)
    losses = []
    for _ in range(5):
        loss = model(x).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]

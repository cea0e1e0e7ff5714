import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.branches.channels import Resized
from noble_fx.branches.noble import NobleBranch
from noble_fx.config import NobleConfig
from noble_fx.errors import Refusal

X = torch.randn(200, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def branch(act="cosnet", rank: int = 6, preset: str = "paper", seed: int | None = 0) -> NobleBranch:
    torch.manual_seed(0)
    made = NobleBranch(24, 20, rank, NobleConfig(rank=rank, act=act, preset=preset, seed=seed)).double()
    for parameter in made.parameters():  # as if it had learnt
        nn.init.normal_(parameter, std=0.5)
    return made


def resized(old: NobleBranch, rank: int, inputs=None) -> Resized:
    answer = old.resized(rank, inputs)
    assert isinstance(answer, Resized)
    assert answer.branch.rank == rank
    return answer


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("act", noble_fx.activation_names())
def test_a_grown_branch_is_the_same_function(act, preset):
    old = branch(act, preset=preset)
    new = resized(old, 11).branch
    assert (new(X) - old(X)).abs().max() < 1e-12 * old(X).abs().max()
    assert new.down.shape == (11, 24)
    assert new.up[:, 6:].abs().max() == 0
    assert new.down[6:].abs().min() > 0
    new(X).square().sum().backward()
    assert new.up.grad[:, 6:].abs().min() > 0  # and what is new can learn


@pytest.mark.parametrize("act", noble_fx.activation_names())
def test_channels_that_nobody_hears_go_without_a_loss(act):
    old = branch(act)
    back = resized(resized(old, 11).branch, 6)
    assert back.error < 1e-6
    assert (back.branch(X) - old(X)).abs().max() < 1e-6 * old(X).abs().max()


@pytest.mark.parametrize("act", ["cosnet", "cosnet_double", "gelu", "swiglu_net"])
def test_a_shrunk_branch_is_nearer_than_one_cut_off(act):
    old = branch(act)
    seen = resized(old, 4, old.bottleneck(X))
    with torch.no_grad():
        measured = (seen.branch(X) - old(X)).norm() / old(X).norm()
    assert seen.error == pytest.approx(float(measured), rel=1e-6)
    cut = branch(act, rank=4)
    for (name, parameter), whole in zip(cut.named_parameters(), old.parameters(), strict=True):
        blocks = [part[:4] for part in whole.chunk(whole.shape[0] // 6)] if name != "up" else [whole]
        rows = torch.cat(blocks)
        parameter.data = rows[:, :4] if name != "down" and rows.dim() == 2 else rows
    with torch.no_grad():
        assert seen.error < 0.9 * float((cut(X) - old(X)).norm() / old(X).norm())


def test_dtype_gradients_and_mode_are_the_old_ones():
    old = branch(preset="reference").bfloat16()
    old.down.requires_grad_(False)
    new = resized(old, 9).branch
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert not new.down.requires_grad
    assert new.up.requires_grad
    assert torch.equal(new.act.mixer.weight[:6, :6], old.act.mixer.weight)


def test_a_seed_draws_the_same_channels_and_others_than_before():
    old, fresh = branch(), branch().fresh(20, 9)
    one, other = resized(old, 9).branch, resized(branch(), 9).branch
    assert torch.equal(one.down, other.down)
    assert not torch.equal(one.down[6:], fresh.down[6:].double())


def test_an_activation_of_ones_own_with_a_buffer():
    class Shifted(nn.Module):
        def __init__(self, rank):
            super().__init__()
            self.gain = nn.Parameter(torch.rand(rank))
            self.register_buffer("offset", torch.rand(rank))

        def forward(self, h):
            return torch.sin(self.gain * h + self.offset)

    old = branch(lambda rank: nn.Sequential(Shifted(rank), nn.Linear(rank, rank), nn.SiLU()))
    assert (resized(old, 8).branch(X) - old(X)).abs().max() < 1e-12
    assert torch.equal(resized(old, 8).branch.act[0].offset[:6], old.act[0].offset)
    assert resized(old, 5, old.bottleneck(X)).error < 0.5


def test_what_cannot_change_says_why():
    mixing = branch(lambda rank: nn.Softmax(-1))
    assert isinstance(refused := mixing.resized(8), Refusal)
    assert "cannot be given another rank" in refused.reason
    grouped = branch(lambda rank: nn.Sequential(nn.Linear(rank, 2 * rank), nn.Tanh(), nn.Linear(2 * rank, rank)))
    assert isinstance(grouped.resized(8), Resized)
    assert isinstance(refused := grouped.resized(4), Refusal)
    assert "2 entries of each channel" in refused.reason
    strange = branch()
    strange.extra = nn.Parameter(torch.ones(1))
    assert isinstance(refused := strange.resized(8), Refusal)
    assert "'extra'" in refused.reason


@pytest.mark.parametrize("act", ["cosnet", "gelu", "swiglu_net", "identity"])
@pytest.mark.parametrize(("rank", "factor"), [(1, 1.0), (4, 1.5), (6, 1.0)])
def test_the_first_channels_as_they_are(act, rank, factor):
    """Each matrix that reads channels is its first block, times the factor; nothing is chosen or fitted."""
    old = branch(act)
    answer = old.shortened(rank, factor, X @ old.down.detach().T)
    assert isinstance(answer, Resized)
    new = answer.branch
    assert torch.equal(new.down, old.down[:rank])
    torch.testing.assert_close(new.up, factor * old.up[:, :rank], rtol=1e-14, atol=0)
    if act == "cosnet":
        torch.testing.assert_close(
            new.act.mixer.weight, factor * old.act.mixer.weight[:rank, :rank], rtol=1e-14, atol=0
        )
        assert torch.equal(new.act.first.frequency, old.act.first.frequency[:rank])
    off = (new(X) - old(X)).norm() / old(X).norm()
    assert answer.error == pytest.approx(off.item(), rel=1e-9, abs=1e-7)  # the root of what products cancel to


def test_a_sigma_whose_channels_are_not_apart_has_no_first_ones():
    answer = branch(lambda rank: nn.Softmax(-1)).shortened(3, 1.0)
    assert isinstance(answer, Refusal)

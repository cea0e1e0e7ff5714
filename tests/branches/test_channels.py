import torch

from noble_fx.branches.channels import Axis, Kept

MADE, TAKEN = Axis(1, False, blocks=2), Axis(0, True)


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)


def test_kept_channels_take_their_places_in_every_block():
    kept = Kept(3, 2, {0: torch.tensor([0, 2]), 1: torch.tensor([1, 2])})
    old = numbered(6, 3)  # two blocks of three rows
    new = kept.carry(old, torch.zeros(4, 2), (MADE, TAKEN))
    assert torch.equal(new, old[[1, 2, 4, 5]][:, [0, 2]])


def test_new_channels_keep_what_was_drawn_and_are_not_read_by_old_ones():
    every = torch.arange(2)
    kept = Kept(2, 3, {0: every, 1: every})
    old, drawn = numbered(4, 2), 100 + numbered(6, 3)
    new = kept.unseen(kept.carry(old, drawn.clone(), (MADE, TAKEN)), (MADE, TAKEN))
    assert torch.equal(new[[0, 1, 3, 4]][:, :2], old)
    assert torch.equal(new[[0, 1, 3, 4]][:, 2], torch.zeros(4))
    assert torch.equal(new[[2, 5]], drawn[[2, 5]])


def test_a_result_reads_no_new_channel_and_a_new_one_is_drawn():
    kept = Kept(2, 4, {0: torch.arange(2)})
    up = kept.unseen(kept.carry(numbered(3, 2), torch.ones(3, 4), (None, TAKEN)), (None, TAKEN))
    assert torch.equal(up, torch.cat([numbered(3, 2), torch.zeros(3, 2)], 1))
    phase = kept.unseen(kept.carry(numbered(2), torch.full((4,), 9.0), (Axis(0, False),)), (Axis(0, False),))
    assert phase.tolist() == [1, 2, 9, 9]


def test_what_the_rank_says_nothing_of_is_carried_whole():
    kept = Kept(2, 4, {0: torch.arange(2)})
    assert torch.equal(kept.carry(numbered(5), torch.zeros(5), (None,)), numbered(5))

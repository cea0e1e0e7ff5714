import pytest
import torch

from noble_fx import ConfigError
from noble_fx.training.changing.optimizers import apply_changes, as_optimizers, check_held, put_back_on_error
from noble_fx.training.changing.parameter_changes import exchanged, gone
from tests.training.changing.changes import memory, started


def test_what_is_an_optimizer():
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    assert as_optimizers(None) == []
    assert as_optimizers(adam) == as_optimizers((adam,)) == [adam]
    for wrong in ("adam", [3], 3):
        with pytest.raises(ConfigError, match="must be a torch"):
            as_optimizers(wrong)


def test_an_error_half_way_leaves_groups_and_state():
    model, optimizer = started(1)
    branch = model.blocks[0].fc1.noble
    before, groups = memory(model, optimizer), list(optimizer.param_groups)

    def interrupted():
        with put_back_on_error([optimizer]):
            apply_changes([optimizer], model, gone("fc1", branch))
            assert memory(model, optimizer) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert memory(model, optimizer) == before
    assert all(one is other for one, other in zip(optimizer.param_groups, groups, strict=True))


def test_a_frozen_parameter_need_not_be_there():
    model, optimizer = started(1)
    branch = model.blocks[0].fc1.noble
    changes = exchanged("fc1", branch, branch.resized(6))
    other = torch.optim.SGD([model.head.weight])
    with pytest.raises(ConfigError, match=r"holds no 'fc1.down', which learns; give all optimizers"):
        check_held([other], changes)
    check_held([other, optimizer], changes)
    branch.requires_grad_(False)
    check_held([other], changes)

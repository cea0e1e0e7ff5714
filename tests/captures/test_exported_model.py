"""A model that runs two exported graphs over its own tree."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import noble_fx
from noble_fx import CaptureError
from noble_fx.attach.attach import named_branches
from noble_fx.captures.exported_model import ExportedModel
from tests.captures.test_export import calls, exported
from tests.models import Tiny, loud, tiny, tokens
from tests.zoo import Functional, features


def test_dropout_draws_in_train_mode_alone():
    made, x = calls(), torch.randn(5, 8)
    assert not torch.equal(made.train()(x)["h"], made(x)["h"])
    assert torch.equal(made.eval()(x)["h"], made(x)["h"])


def test_train_mode_updates_buffers():
    made = calls().train()
    made(torch.randn(5, 8))
    assert made.norm.num_batches_tracked == 1
    assert made.norm.running_mean.abs().sum() > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_whole_and_independent(copied):
    made = exported()
    other, x = copied(made), tokens(3, 4)
    assert isinstance(other, ExportedModel)
    assert torch.equal(other(x), made(x))
    with torch.no_grad():
        other.blocks[0].fc1.noble.up.zero_()
    assert not torch.equal(other(x), made(x))
    with noble_fx.disabled(other), noble_fx.disabled(made):
        assert torch.equal(other(x), made(x))
    assert len(noble_fx.programs(other)) == 2


def test_copies_of_bare_parameters_and_constants():
    made = noble_fx.transform(Functional(), rank=2, select="all", capture="export", seed=0, example_kwargs=features())
    loud(made)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(**features()), made(**features()))


def test_disabled_and_remove_give_the_base_model_bit_for_bit():
    model, x = tiny(), tokens(3, 4)
    base = model(x)
    made = exported(model)
    assert not torch.equal(made(x), base)
    with noble_fx.disabled(made):
        assert torch.equal(made(x), base)
    assert not torch.equal(made(x), base)
    noble_fx.remove(made)
    assert torch.equal(made(x), base)
    assert not named_branches(made)


def test_parameters_are_read_as_they_are_now():
    made, other, x = exported(), exported(tiny(seed=3)), tokens()
    made.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(made(x), other(x))


def test_meta_then_to_empty():
    with torch.device("meta"):
        model = Tiny()
    made = noble_fx.transform(model, rank=4, capture="export", example_inputs=(tokens().to("meta"),))
    made.to_empty(device="cpu")
    made.load_state_dict(exported().state_dict())
    assert torch.equal(made.eval()(tokens()), exported()(tokens()))


def test_another_dtype_is_refused_and_autocast_works():
    made = exported()
    with pytest.raises(CaptureError, match=r"exported in torch.float32, and torch.bfloat16 would need others"):
        made.bfloat16()
    assert made.head.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(tokens()).dtype == torch.bfloat16

"""What a calibration may be, and what is said of anything else."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noble_fx.compressing.calibration import Batch, Calibration, misfit, run
from noble_fx.errors import ConfigError

X = torch.ones(2, 3)


class Named(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids


def calls(given) -> list[tuple[int, list[str]]]:
    return [(len(batch.args), list(batch.kwargs)) for batch in Calibration(given)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (X, [(1, [])]),
        ((X, X), [(2, [])]),
        ({"input_ids": X}, [(0, ["input_ids"])]),
        ([X, X, X], [(1, [])] * 3),
        ([(X, X), {"a": X}], [(2, []), (0, ["a"])]),
        ((X for _ in range(2)), [(1, [])] * 2),
        (DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2), [(1, [])] * 2),
    ],
    ids=["tensor", "tuple", "dictionary", "list", "mixed", "generator", "loader"],
)
def test_forms(given, expected):
    assert calls(given) == expected


@pytest.mark.parametrize("given", ["text", 3, nn.Linear(1, 1)])
def test_what_is_no_calibration(given):
    with pytest.raises(ConfigError, match=r"calibration=.* must be a tensor, a tuple"):
        Calibration(given)


def test_what_is_no_batch():
    with pytest.raises(ConfigError, match="calibration batch 1 is 'text', which is no input"):
        list(Calibration([X, "text"]))


@pytest.mark.parametrize("given", [[], iter(())])
def test_none_at_all(given):
    with pytest.raises(ConfigError, match="calibration holds no batch"):
        Calibration(given).first()
    with pytest.raises(ConfigError, match="calibration holds no batch"):
        list(Calibration(given))


def test_the_first_batch_is_not_taken():
    given = Calibration(iter([X, 2 * X]))
    assert torch.equal(given.first().args[0], X)
    assert [float(batch.args[0].max()) for batch in given] == [1.0, 2.0]


def test_repeatable():
    once = Calibration(iter([X, X]))
    assert len(once) == 0
    again = once.repeatable()
    assert len(again) == 2
    assert len(list(again)) == len(list(again)) == 2


def test_a_misfit_names_the_argument():
    assert misfit(Named(), Batch((), {"tokens": X}, "")) == (
        "missing a required argument: 'input_ids' of Named.forward"
    )
    assert "too many positional arguments" in misfit(Named(), Batch((X, X, X), {}, ""))
    assert misfit(Named(), Batch((X,), {}, "")) == ""


def test_a_model_that_cannot_run():
    with pytest.raises(ConfigError, match=r"cannot run on calibration batch 3: got an unexpected .* 'labels'"):
        run(Named(), Batch((X,), {"labels": X}, "calibration batch 3"))
    with pytest.raises(ConfigError, match=r"cannot run on calibration: RuntimeError: .*shapes"):
        run(nn.Linear(5, 2), Batch((X,), {}, "calibration"))


def test_being_out_of_memory_or_interrupted_is_told_as_it_is():
    class Full(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError

    class Stopped(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    for model, error in ((Full(), torch.OutOfMemoryError), (Stopped(), KeyboardInterrupt)):
        with pytest.raises(error):
            run(model, Batch((X,), {}, ""))

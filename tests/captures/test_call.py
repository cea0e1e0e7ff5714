"""Arguments of a captured model: bound as Python binds them, and checked against the graphs."""

import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from noble_fx import CaptureError
from noble_fx.captures.call import Call, Fixed

X = Fixed((None, 8), torch.float32, (3, 8))
SPEC = {"train": pytree.tree_structure([0]), "eval": pytree.tree_structure([0])}


def call(**changes) -> Call:
    settings = {
        "names": ("x", "mask"),
        "keyword_only": ("scale", "pair"),
        "examples": {"x": X, "scale": 2.0, "pair": (X, None)},
        "defaults": {"mask": None, "other": 3},
        "out_specs": SPEC,
    }
    return Call(**(settings | changes))


def test_the_signature_names_self_and_what_may_be_left_out():
    assert str(call().signature()) == "(self, x, mask=None, *, scale=None, pair=None)"


@pytest.mark.parametrize("made", [call(), pickle.loads(pickle.dumps(call()))])
def test_leaves_are_flat_in_the_order_of_the_examples(made):
    x, pair = torch.ones(5, 8), (torch.zeros(2, 8), None)
    expected = [x, 2.0, pair[0], None]
    for args, kwargs in [
        ((x,), {"pair": pair}),
        ((), {"pair": pair, "x": x, "scale": 2.0}),
        ((x, None), {"pair": pair}),
    ]:
        leaves = made.leaves(args, kwargs)
        assert len(leaves) == 4
        assert all(leaf is other or leaf == other for leaf, other in zip(leaves, expected, strict=True))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((), {}, CaptureError, "forward needs 'x'"),
        ((torch.ones(2, 8),), {}, CaptureError, "forward needs 'pair'"),
        ((torch.ones(2, 8),) * 3, {}, TypeError, "too many positional"),
        ((torch.ones(2, 8),), {"x": torch.ones(2, 8)}, TypeError, "multiple values"),
        ((torch.ones(2, 8),), {"else": 1}, TypeError, "unexpected keyword"),
        ((torch.ones(8),), {}, CaptureError, r"'x' is \[8\], and the graphs take float32\[\*, 8\]"),
        ((torch.ones(2, 8),), {"scale": 3.0}, CaptureError, "'scale' is 3.0 where the graphs have 2.0"),
        ((torch.ones(2, 8),), {"pair": [torch.ones(2, 8)]}, CaptureError, "'pair' has another structure"),
        ((torch.ones(2, 8),), {"pair": (torch.ones(2, 8), 1)}, CaptureError, "'pair' is 1 where the graphs have None"),
        ((torch.ones(2, 8), torch.ones(1)), {"pair": (torch.ones(2, 8), None)}, CaptureError, "'mask' was not among"),
    ],
)
def test_what_does_not_fit_is_named(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        call().leaves(args, kwargs)

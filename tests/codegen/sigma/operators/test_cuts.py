"""Slices, splits and concatenations along channels: no line of their own, and right for every size of a piece."""

import re

import pytest
import torch

from noble_fx.codegen.generate import generate
from noble_fx.codegen.kernels.forward import bottleneck_forward
from noble_fx.codegen.plan import make_plan
from noble_fx.errors import KernelError
from tests.codegen.one_layer import Pointwise, branch_of, check, layer_of

FUNCTIONS = {
    "two halves": lambda h: torch.cat([h[..., :6].sin(), h[..., 6:].cos()], -1),
    "halves swapped": lambda h: torch.cat(list(h.chunk(2, -1))[::-1], -1),
    "thirds": lambda h: torch.cat([p.sin() * (i + 1) for i, p in enumerate(h.split([3, 4, 5], -1))], -1),
    "ragged split": lambda h: torch.cat([p * (i + 0.5) for i, p in enumerate(h.split(5, -1))], -1),
    "one channel to all": lambda h: h * torch.sigmoid(h[..., 2:3]),
    "from the end": lambda h: torch.cat([h[..., -4:].sin(), h[..., :-4]], -1),
    "a piece of a piece": lambda h: torch.cat([h[..., :8][..., 2:].sin(), h[..., :6]], -1),
    "written into": lambda h: torch.slice_scatter(h.cos(), h[..., 3:7].sin(), -1, 3, 7),
    "the whole": lambda h: h[..., :].sin(),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_in_a_kernel(name):
    check(branch_of(lambda rank: Pointwise(FUNCTIONS[name]), rank=12))


@pytest.mark.parametrize("rank", [2, 70, 150])
def test_halves_of_every_width(rank):
    check(branch_of(lambda rank: Pointwise(FUNCTIONS["halves swapped"]), rank))


def test_a_cut_has_no_line():
    source = bottleneck_forward(make_plan(layer_of([branch_of("swiglu", 16)]))).source
    sigma = source[source.index("# t = σ(h)") :]
    assert not re.search(r"\b(split|slice|getitem|cat)", sigma)
    assert "tl.sigmoid(addmm_c0)" in sigma
    assert "* addmm_c16" in sigma


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda h: h[..., ::2].repeat_interleave(2, -1), "step|not in the lowering table"),
        (lambda h: torch.slice_scatter(h, h[..., ::2], -1, 0, 12, 2), "step"),
    ],
)
def test_refused_with_the_reason(function, reason):
    with pytest.raises(KernelError, match=reason):
        generate(make_plan(layer_of([branch_of(lambda rank: Pointwise(function), 12)]), "interpreter"))

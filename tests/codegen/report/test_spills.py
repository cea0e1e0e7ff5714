"""No kernel of any plan spills more than a little: by the offline compilers, for GPUs that are not there."""

from itertools import product

import pytest
import torch

import noble_fx
from noble_fx.codegen.plan import SHARED_BYTES
from noble_fx.codegen.report.resources import TARGETS
from tests.samples import sampled

pytest.importorskip("triton")

RANKS = (16, 32, 64, 96, 100, 128, 160, 192, 256)
SETTINGS = list(product((torch.bfloat16, torch.float32, torch.float16), ("cosnet", "swiglu", "gelu"), (1, 3)))
SPILLED = 256  # bytes of local memory a thread


def case(at: int, target: str, rank: int) -> str:
    dtype, act, sites = SETTINGS[at % len(SETTINGS)]
    return f"{target}-r{rank}-{str(dtype).removeprefix('torch.')}-{act}-{sites}"


# Every target and rank, with a dtype, a σ and a number of sites in turn. 7 and the 18 settings have no common divisor.
CASES = [(7 * at, target, rank) for at, (target, rank) in enumerate(product(TARGETS, RANKS))]
QUICK = {case(7 * at, *pair) for at, pair in enumerate(product(TARGETS, RANKS)) if pair == ("gfx942", 64)}


@pytest.mark.parametrize("drawn", sampled(CASES, QUICK, lambda drawn: case(*drawn)))
def test_what_a_kernel_spills(drawn, tmp_path, monkeypatch):
    at, target, rank = drawn
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    dtype, act, sites = SETTINGS[at % len(SETTINGS)]
    kernel_set = noble_fx.kernels(act, in_features=2048, out_features=(1024,) * sites, rank=rank, dtype=dtype)
    for name, kernel in kernel_set.compile(target).items():
        assert kernel.local_bytes <= SPILLED, name
        assert kernel.shared_bytes <= SHARED_BYTES[target], name


def test_a_gated_sigma_at_the_widest_rank(tmp_path, monkeypatch):
    """It holds twice the channels; the tile of 64 rows that other σ's have there would spill a kilobyte."""
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    kernel_set = noble_fx.kernels("swiglu_net", in_features=2048, out_features=1024, rank=256, dtype=torch.float16)
    resources = kernel_set.only("bottleneck_forward").compile("sm_90")
    assert resources["bottleneck_forward"].local_bytes <= SPILLED

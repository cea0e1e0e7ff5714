"""Any σ through its generated kernels, under Triton's interpreter, against eager autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from noble_fx.branches.noble import NobleBranch
from noble_fx.codegen.plan import SHARED_BYTES, Layer
from noble_fx.config import NobleConfig
from noble_fx.runtime.layer_kernels import LayerKernels, layer_kernels

TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
KERNELS = ("kernel",)


def branch_of(act: str | Callable[[int], nn.Module], rank: int, columns: int = 24, inputs: int = 20) -> NobleBranch:
    """A branch that matters: U and every vector drawn with a standard deviation near one."""
    torch.manual_seed(0)
    branch = NobleBranch(inputs, columns, rank, NobleConfig(rank=rank, act=act, preset="reference"))
    with torch.no_grad():
        for parameter in branch.parameters():
            if parameter.dim() < 2:
                parameter.normal_(std=0.5)
        branch.up.normal_(std=0.5)
    return branch


def kernels_of(branch: NobleBranch, dtype: torch.dtype, sites: int = 1) -> LayerKernels:
    """The kernels of a branch's layer without a bias."""
    columns = (branch.out_features,) * sites
    down_bias = branch.down_bias is not None
    layer = Layer(branch.in_features, columns, branch.rank, branch.key, dtype, dtype, False, down_bias)
    return layer_kernels(layer, "interpreter", SHARED_BYTES["sm_80"], False)


def check(branch: NobleBranch, rows: int = 45, dtype: torch.dtype = torch.float32) -> None:
    """t Uᵀ and every gradient of one layer with W = 0."""
    branch = branch.to(dtype)
    kernels = kernels_of(branch, dtype)
    x, dy = torch.randn(rows, branch.in_features).to(dtype), torch.randn(rows, branch.out_features).to(dtype)
    weight = torch.zeros(branch.out_features, branch.in_features, dtype=dtype)
    row = [x, weight, None, branch.down, branch.down_bias, branch.up, *branch.act_tensors()]
    row = [None if one is None else one.detach() for one in row]
    (y,), h = kernels.forward(row, KERNELS)
    needs = [one is not None and one.is_floating_point() for one in row]
    needs[6 + len(list(branch.act.parameters())) :] = [False] * len(list(branch.act.buffers()))
    found = kernels.backward([dy], h, row, needs, (*KERNELS, *KERNELS))
    for name, one, truth in zip(["y", *kernels.names()], [y, *found], truth_of(branch, x, dy), strict=True):
        near(name, one, truth, dtype)


def truth_of(branch: NobleBranch, x: Tensor, dy: Tensor) -> list[Tensor | None]:
    """y, then one gradient for each tensor of the row, by autograd in float64."""
    exact = branch.double()
    wide = x.double().requires_grad_()
    exact.zero_grad()
    h = torch.nn.functional.linear(wide, exact.down, exact.down_bias)
    y = exact.act(h) @ exact.up.t()
    y.backward(dy.double())
    own = [wide.grad, dy.double().t() @ wide.detach(), None, exact.down.grad]
    own += [None if exact.down_bias is None else exact.down_bias.grad, exact.up.grad]
    return [y.detach(), *own, *(p.grad for p in exact.act.parameters()), *(None for _ in exact.act.buffers())]


def near(name: str, found: Tensor | None, truth: Tensor | None, dtype: torch.dtype) -> None:
    """Fails where the largest error is over the dtype's tolerance of the largest number, or NaNs differ."""
    if found is None or truth is None:
        assert found is None, f"{name} is computed, but has no gradient"
        assert truth is None or not truth.any(), f"{name} has a gradient, but is not computed"
        return
    found, size = found.double(), max(1.0, truth[truth.isfinite()].abs().max().item())
    assert torch.equal(found.isnan(), truth.isnan()), f"{name}: NaN in other places"
    both = truth.isfinite()
    assert torch.equal(found[~both & ~truth.isnan()], truth[~both & ~truth.isnan()]), f"{name}: other infinities"
    error = (found - truth)[both].abs().max().item()
    assert error <= TOLERANCE[dtype] * size, f"{name}: error {error:.3g} of {size:.3g}"

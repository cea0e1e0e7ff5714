"""One fused layer against the eager branch in float64: what the tests of the kernels share, on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noble_fx import NobleLinear, schema
from noble_fx.ops import available, cuda, direct, routes
from noble_fx.ops.operands import Operands
from noble_fx.runtime import autotune, execute
from noble_fx.runtime.autotune import Variant
from noble_fx.runtime.layer_kernels import LayerKernels

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@contextmanager
def launches_noted() -> Iterator[list[str]]:
    """The names of the kernels that are launched meanwhile; what was resolved and refused before is forgotten."""
    launched: list[str] = []

    def noted(plan, kernel, rows, arguments):
        launched.append(kernel.name)
        return start(plan, kernel, rows, arguments)

    start = execute.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "start", noted)
        patch.setattr(available, "_refused", {})
        patch.setenv("NOBLE_FX_TUNE", "0")
        forget()
        yield launched
    forget()


def forget() -> None:
    """Nothing is resolved, nothing measured."""
    routes.forget()
    autotune.forget()


@contextmanager
def kernels_on_cpu(cache: Path) -> Iterator[list[str]]:
    """CPU tensors take the CUDA side's code, under Triton's interpreter; yields the kernels that were launched."""
    with pytest.MonkeyPatch.context() as patch, torch.library._scoped_library("noble_fx", "IMPL") as library:
        patch.setenv("NOBLE_FX_CACHE", str(cache))
        patch.setattr(available, "gpu_of", lambda device: available.Gpu("interpreter", 1 << 16))
        patch.setitem(direct.IMPLEMENTATIONS, "cpu", direct.IMPLEMENTATIONS["cuda"])
        cuda.register(library, "CPU")
        with launches_noted() as launched:
            yield launched


def take(monkeypatch: pytest.MonkeyPatch, variant: Variant) -> None:
    """Every choice from now on is this variant, where there is such a one: of the product, and of the branch's weight
    gradients."""
    variants_of = LayerKernels.forward_variants

    def forward_variants(self: LayerKernels) -> tuple[list[Variant], Variant]:
        variants, default = variants_of(self)
        chosen = variant[:1] if variant[:1] in variants else default
        return [chosen], chosen

    routes.forget()
    monkeypatch.setattr(LayerKernels, "forward_variants", forward_variants)
    monkeypatch.setattr(LayerKernels, "backward_variants", lambda self, needs: ([variant], variant))


def layer_of(
    act: str = "cosnet", in_features: int = 40, out_features: int = 72, rank: int = 12, **settings: object
) -> NobleLinear:
    """A layer with a branch that matters, on the CPU in float32, run by the operator."""
    torch.manual_seed(0)
    layer = NobleLinear.build(in_features, out_features, rank, act=act, **{"preset": "reference", **settings})
    with torch.no_grad():
        layer.noble.up.normal_()
    layer.noble.unfused = ""
    return layer


def exact_of(layer: NobleLinear) -> NobleLinear:
    """The same numbers in float64, in eager modules."""
    noble = layer.noble
    settings = noble.config.replace(rank=noble.rank)
    exact = NobleLinear.build(layer.in_features, layer.out_features, noble.rank, layer.bias is not None)
    exact.noble = type(noble)(layer.in_features, layer.out_features, noble.rank, settings)
    exact.load_state_dict(layer.state_dict())
    return exact.to(layer.weight.device, torch.float64)


def check(layer: NobleLinear, x: Tensor, dy: Tensor | None = None, scale: float = 1.0) -> None:
    """y and every gradient against the eager branch in float64, from the same numbers."""
    exact, x = exact_of(layer), x.detach().requires_grad_()
    x64 = x.detach().double().requires_grad_()
    y, truth = layer(x), exact(x64)
    assert y.shape == truth.shape
    assert y.dtype == x.dtype
    dy = torch.randn(truth.shape, device=y.device).to(y.dtype) if dy is None else dy
    y.backward(dy)
    truth.backward(dy.double())
    near("y", y, truth, scale)
    near("dx", x.grad, x64.grad, scale)
    for (name, parameter), wanted in zip(layer.named_parameters(), exact.parameters(), strict=True):
        assert parameter.grad.shape == parameter.shape
        assert parameter.grad.dtype == parameter.dtype
        near(name, parameter.grad, wanted.grad, scale)


def near(name: str, result: Tensor, truth: Tensor, scale: float = 1.0) -> None:
    """Fails where the largest error is over the dtype's tolerance of the largest number."""
    size = max(1.0, truth.abs().max().item()) if truth.numel() else 1.0
    error = (result.double() - truth).abs().max().item() if truth.numel() else 0.0
    assert error <= scale * TOLERANCE[result.dtype] * size, f"{name}: error {error:.3g} of {size:.3g}"


def strided(*shape: int) -> Tensor:
    """Random numbers whose last axis is not the contiguous one."""
    return torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)


def small_layer(
    act: str = "cosnet", in_features: int = 9, out_features: int = 7, rank: int = 4, **settings: object
) -> NobleLinear:
    """`layer_of`, of sizes that are cheap to differentiate by differences."""
    return layer_of(act, in_features, out_features, rank, **settings)


def small_layers(
    act: str = "cosnet", in_features: int = 9, outs: Sequence[int] = (7, 4, 4), rank: int = 3, **settings: object
) -> nn.ModuleList:
    """Sites of one input: N differs, as in grouped-query attention."""
    torch.manual_seed(0)
    layers = nn.ModuleList(
        NobleLinear.build(in_features, n, rank, act=act, **{"preset": "reference", **settings}) for n in outs
    )
    with torch.no_grad():
        for layer in layers:
            layer.noble.up.normal_()
    return layers


def arguments(layer: NobleLinear, x: Tensor) -> list[Any]:
    """The arguments of `noble_fx::linear`."""
    noble = layer.noble
    return [x, layer.weight, layer.bias, noble.down, noble.down_bias, noble.up, noble.act_tensors(), noble.key]


def group_arguments(layers: Sequence[NobleLinear], x: Tensor) -> tuple[Any, ...]:
    """The arguments of `noble_fx::linear_group`."""
    return Operands.join([Operands.of_linear(*arguments(layer, x)) for layer in layers]).group_args()


def eagerly(layer: NobleLinear, x: Tensor) -> Tensor:
    """y [.., N] by the modules."""
    layer.noble.unfused = "eager"
    try:
        return layer(x)
    finally:
        layer.noble.unfused = ""


def eagerly_each(layers: Sequence[NobleLinear], x: Tensor) -> list[Tensor]:
    """y [.., N] of each by the modules."""
    return [eagerly(layer, x) for layer in layers]


def check_group(layers: list[NobleLinear], x: Tensor, used: Sequence[int], scale: float = 1.0) -> None:
    """y of each and every gradient of a loss on those `used`, against each layer alone in float64."""
    x = x.detach().requires_grad_()
    exact, x64 = [exact_of(layer) for layer in layers], x.detach().double().requires_grad_()
    y = schema.LINEAR_GROUP(*group_arguments(layers, x))
    truth = [layer(x64) for layer in exact]
    dy = {i: torch.randn(truth[i].shape, device=x.device).to(x.dtype) for i in used}
    torch.autograd.backward([y[i] for i in used], [dy[i] for i in used])
    torch.autograd.backward([truth[i] for i in used], [dy[i].double() for i in used])
    near("dx", x.grad, x64.grad, scale)
    for i, layer in enumerate(layers):
        near(f"y {i}", y[i], truth[i], scale)
        for (name, mine), wanted in zip(layer.named_parameters(), exact[i].parameters(), strict=True):
            assert (mine.grad is None) == (wanted.grad is None), name
            if mine.grad is not None:
                near(f"{i} {name}", mine.grad, wanted.grad, scale)

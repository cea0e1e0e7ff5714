"""A layer by its generated kernels alone, under Triton's interpreter, against autograd in float64.

What runs them here is not the project's launcher of layers: it follows the kernels' names, and takes every product
that a kernel can make. Tensors go by the names of the kernels' arguments: "x", "weight", "act_phase", "d_up_1".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from noble_fx.branches import keys
from noble_fx.branches.noble import NobleBranch
from noble_fx.codegen.generate import generate
from noble_fx.codegen.kernels.branch_weights import SPLITS, branch_weights_width
from noble_fx.codegen.kernels.stages import Gemm, Stage, Steps, backward_steps, forward_steps
from noble_fx.codegen.plan import Layer, Plan, make_plan
from noble_fx.codegen.sigma.in_kernel import tensor_name
from noble_fx.config import NobleConfig
from noble_fx.runtime.launch import launch

TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
Tensors = dict[str, Tensor]


class Pointwise(nn.Module):
    """One function of h."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h)


def branch_of(
    act: str | Callable[[int], nn.Module], rank: int, columns: int = 24, inputs: int = 20, preset: str = "reference"
) -> NobleBranch:
    """A branch that matters: U and every vector drawn with a standard deviation near one."""
    branch = NobleBranch(inputs, columns, rank, NobleConfig(rank=rank, act=act, preset=preset))
    with torch.no_grad():
        for parameter in branch.parameters():
            if parameter.dim() < 2:
                parameter.normal_(std=0.5)
        branch.up.normal_(std=0.5)
    return branch


def layer_of(branches: Sequence[NobleBranch], dtype: torch.dtype = torch.float32, bias: bool = False) -> Layer:
    """The layer of one branch, or of several that read the same x."""
    first = branches[0]
    columns = tuple(branch.out_features for branch in branches)
    key = keys.activation_key(first.act, first.label, first.rank)
    return Layer(first.in_features, columns, first.rank, key, dtype, dtype, bias, first.down_bias is not None)


def check(branch: NobleBranch, rows: int = 45, dtype: torch.dtype = torch.float32) -> None:
    """y and every gradient of one layer."""
    check_group([branch], rows, dtype)


def check_group(branches: Sequence[NobleBranch], rows: int = 45, dtype: torch.dtype = torch.float32) -> None:
    """y and every gradient of layers that read the same x."""
    branches = [branch.to(dtype) for branch in branches]
    layer = layer_of(branches, dtype, bias=True)
    tensors = tensors_of(layer, branches, rows)
    results, truth = run(make_plan(layer, "interpreter"), tensors), truth_of(layer, branches, tensors)
    assert results.keys() == truth.keys()
    for name in truth:
        near(name, results[name], truth[name], dtype)


def tensors_of(layer: Layer, branches: Sequence[NobleBranch], rows: int) -> Tensors:
    """x, dy and the parameters of every site, by the names of the kernels' arguments."""
    torch.manual_seed(0)
    dtype = layer.dtype
    tensors = {"x": torch.randn(rows, layer.in_features).to(dtype)}
    for site, branch in enumerate(branches):
        columns = layer.out_features[site]
        own = {
            "weight": (torch.randn(columns, layer.in_features) * 0.2).to(dtype),
            "bias": torch.randn(columns).to(dtype),
            "dy": torch.randn(rows, columns).to(dtype),
            "down": branch.down.detach(),
            "up": branch.up.detach(),
        }
        if branch.down_bias is not None:
            own["down_bias"] = branch.down_bias.detach()
        state = {**dict(branch.act.named_parameters()), **dict(branch.act.named_buffers())}
        own |= {tensor_name(name): tensor.detach() for name, tensor in state.items()}
        tensors |= {layer.name(name, site): tensor for name, tensor in own.items()}
    return tensors


def run(plan: Plan, tensors: Tensors) -> Tensors:
    """y, and the gradients of x, U, D, b, d and σ's parameters, each by the kernels that are there for it."""
    layer, rows, kernels = plan.layer, len(tensors["x"]), generate(plan)
    live = dict(tensors)

    def new(name: str, *shape: Sequence[int], dtype: torch.dtype = layer.dtype) -> list[str]:
        """An empty tensor for each site; a shape is one for all of them, or one each."""
        names = [layer.name(name, site) for site in range(layer.sites)]
        for site, own in enumerate(names):
            live[own] = torch.full(tuple(shape[site % len(shape)]), float("nan"), dtype=dtype)
        return names

    def of(name: str, site: int) -> Tensor:
        return live[layer.name(name, site)]

    def run_steps(steps: Steps) -> list[str]:
        """Each kernel launched, each GEMM computed; returns the names of the gradients that are products."""
        for name, width in steps.buffers().items():
            new(name, (rows, width), dtype=torch.float32)
        made = []
        for step in steps.steps:
            if isinstance(step, Stage):
                launch(plan, kernels[step.name], rows, live)
                continue
            for site in range(layer.sites):
                live[layer.name(step.out, site)] = _gemm(step, lambda name, site=site: of(name, site))
                made.append(layer.name(step.out, site))
        return [name for name in made if name.startswith("d_")]

    new("h", (rows, layer.rank), dtype=torch.float32)
    new("t", (rows, layer.rank))
    if plan.split_forward:
        for site in range(layer.sites):
            bias = live.get(layer.name("down_bias", site))
            live[layer.name("h", site)] = nn.functional.linear(live["x"], of("down", site), bias).float()
        run_steps(forward_steps(layer))
    else:
        launch(plan, kernels["bottleneck_forward"], rows, live)
    results = new("y", *((rows, columns) for columns in layer.out_features))
    launch(plan, kernels["linear_up_forward"], rows, live)

    steps = backward_steps(plan)
    new("t", (rows, layer.rank))  # backward makes it again
    new("dh", (rows, layer.rank))
    for site in range(layer.sites):
        live[layer.name("dt", site)] = of("dy", site) @ of("up", site)
    row_tiles = -(-rows // plan.bottleneck_backward.rows)
    new("partials", (row_tiles, steps.width), dtype=torch.float32)
    results += run_steps(steps)
    if steps.partials:
        for partial in steps.partials:
            results += new(partial.name, partial.shape)
        launch(plan, kernels["reduce_partials"], 1, live, programs=row_tiles)

    live["dx"] = torch.full_like(tensors["x"], float("nan"))
    launch(plan, kernels["linear_backward_input"], rows, live)
    widths = [(SPLITS, branch_weights_width(layer, site)) for site in range(layer.sites)]
    new("weight_partials", *widths, dtype=torch.float32)
    results += new("d_up", *((columns, layer.rank) for columns in layer.out_features))
    results += new("d_down", (layer.rank, layer.in_features))
    results += new("d_bias", *((columns,) for columns in layer.out_features)) if layer.bias else []
    launch(plan, kernels["branch_weight_backward"], rows, live)
    launch(plan, kernels["reduce_branch_weights"], 1, live)
    return {name: live[name] for name in ["dx", *results]}


def _gemm(gemm: Gemm, of: Callable[[str], Tensor]) -> Tensor:
    left, right = of(gemm.left).float(), of(gemm.right).float()
    product = (left.t() if gemm.left_transposed else left) @ (right.t() if gemm.right_transposed else right)
    return product + of(gemm.bias).float() if gemm.bias else product


def truth_of(
    layer: Layer, branches: Sequence[NobleBranch], tensors: Tensors, wide: torch.dtype = torch.float64
) -> Tensors:
    """The same by autograd in float64, or in another dtype."""
    x = tensors["x"].to(wide).requires_grad_()
    truth: Tensors = {}
    leaves: Tensors = {}
    loss = x.new_zeros(())
    for site, branch in enumerate(branches):
        names = [
            name for name in ("weight", "bias", "down", "up", "down_bias") if name != "down_bias" or layer.down_bias
        ]
        own = {name: tensors[layer.name(name, site)].to(wide).requires_grad_() for name in names}
        state = {
            name: parameter.detach().to(wide).requires_grad_() for name, parameter in branch.act.named_parameters()
        }
        state |= {
            name: buffer.to(wide) if buffer.is_floating_point() else buffer
            for name, buffer in branch.act.named_buffers()
        }
        h = nn.functional.linear(x, own["down"], own.get("down_bias"))
        t = torch.func.functional_call(branch.act, state, (h,))
        y = nn.functional.linear(x, own["weight"], own["bias"]) + t @ own["up"].t()
        truth[layer.name("y", site)] = y.detach()
        loss = loss + (y * tensors[layer.name("dy", site)].to(wide)).sum()
        del own["weight"]
        leaves |= {layer.name(f"d_{name}", site): leaf for name, leaf in own.items()}
        parameters = [name for name, _ in branch.act.named_parameters()]
        leaves |= {layer.name(f"d_{tensor_name(name)}", site): state[name] for name in parameters}
    gradients = torch.autograd.grad(loss, [x, *leaves.values()], allow_unused=True)
    for name, leaf, gradient in zip(["dx", *leaves], [x, *leaves.values()], gradients, strict=True):
        truth[name] = torch.zeros_like(leaf) if gradient is None else gradient
    return truth


def near(name: str, result: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Fails where the largest error is over the dtype's tolerance of the largest number, or NaNs differ."""
    result, size = result.double(), max(1.0, truth[truth.isfinite()].abs().max().item())
    assert result.shape == truth.shape, f"{name}: shape {list(result.shape)}"
    assert torch.equal(result.isnan(), truth.isnan()), f"{name}: NaN in other places"
    both = truth.isfinite()
    assert torch.equal(result[~both & ~truth.isnan()], truth[~both & ~truth.isnan()]), f"{name}: other infinities"
    error = (result - truth)[both].abs().max().item()
    assert error <= TOLERANCE[dtype] * size, f"{name}: error {error:.3g} of {size:.3g}"

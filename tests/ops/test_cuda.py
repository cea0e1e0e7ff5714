"""The launcher and its kernels against the eager maths in float64: on a CPU under Triton's interpreter, every variant.

The same code launches on a GPU; `tests/gpu` runs it there.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import noble_fx
from noble_fx import NobleLinear, schema
from noble_fx.codegen.kernels.stages import Gemm, backward_steps
from noble_fx.ops import available
from noble_fx.ops.operands import Operands
from noble_fx.runtime import execute
from noble_fx.runtime.layer_kernels import FIRST, KERNEL, VENDOR
from tests.fused_layer import (
    TOLERANCE,
    arguments,
    check,
    check_group,
    eagerly,
    exact_of,
    kernels_on_cpu,
    layer_of,
    near,
    strided,
    take,
)
from tests.models import Gamma, Idle
from tests.samples import crossed, long

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as conftest.py sets it where there is no GPU
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted here: tests/gpu compiles them")

VARIANTS = [(KERNEL, KERNEL), (VENDOR, VENDOR), (FIRST, KERNEL)]  # each word of each place


@pytest.fixture(autouse=True)
def on_cpu(tmp_path) -> Iterator[list[str]]:
    """CPU tensors take the CUDA side's code; yields the kernels that were launched."""
    with kernels_on_cpu(tmp_path) as launched:
        yield launched


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_every_variant_and_dtype(monkeypatch, variant, dtype):
    take(monkeypatch, variant)
    layer = layer_of().to(dtype)
    check(layer, torch.randn(50, 40).to(dtype))


@pytest.mark.parametrize(
    ("act", "preset"),
    crossed(
        ["cosnet_double", "identity", "swiglu", "gelu_net", "leaky_relu_scale", "flip_silu"], ["paper", "reference"]
    ),
)
def test_activations_and_presets(act, preset):
    check(layer_of(act, preset=preset, bias=preset == "paper"), torch.randn(37, 40))


@pytest.mark.parametrize("rank", [1, long(2), long(16), 17, long(100)])
def test_ranks(rank):
    check(layer_of(in_features=48, rank=rank), torch.randn(33, 48))


@pytest.mark.parametrize(("variant", "dtype"), crossed(VARIANTS, [torch.float32, torch.bfloat16]))
def test_a_wide_bottleneck_is_split(monkeypatch, variant, dtype, on_cpu):
    take(monkeypatch, variant)
    layer = layer_of(in_features=160, out_features=176, rank=150).to(dtype)
    check(layer, torch.randn(40, 160).to(dtype))
    assert "activation_backward_0" in on_cpu
    assert "bottleneck_backward" not in on_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40,), (2, 3, 40)])
def test_a_split_bottleneck_whose_first_step_is_a_product(shape, dtype, on_cpu):
    """It reads h itself, which has the shape of the call."""
    layer = layer_of(lambda rank: nn.Sequential(nn.Linear(rank, rank), nn.Tanh()), out_features=24, rank=130).to(dtype)
    check(layer, torch.randn(shape).to(dtype))
    assert "activation_backward_1" in on_cpu


INPUTS = {
    "batched": lambda: torch.randn(2, 3, 5, 40),
    "one vector": lambda: torch.randn(40),
    "transposed": lambda: strided(37, 40),
    "batched and transposed": lambda: strided(2, 9, 40),
    "part of a wider tensor": lambda: torch.randn(37, 100)[:, 20:60],
    "at an odd address": lambda: torch.randn(37 * 40 + 1)[1:].view(37, 40),
    "every other row": lambda: torch.randn(74, 40)[::2],
    "one row for all": lambda: torch.randn(1, 40).expand(37, 40),
    "more than a sweep of row tiles": lambda: torch.randn(600, 40),
}


@pytest.mark.parametrize(("name", "variant"), crossed(list(INPUTS), VARIANTS))
def test_inputs_of_any_layout(monkeypatch, name, variant):
    take(monkeypatch, variant)
    check(layer_of(), INPUTS[name]())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gradient", ["expanded", "transposed", "one column expanded"])
def test_output_gradients_of_any_layout(monkeypatch, gradient, variant):
    take(monkeypatch, variant)
    dy = {
        "expanded": torch.ones(()).expand(37, 72),
        "transposed": strided(37, 72),
        "one column expanded": torch.randn(37, 1).expand(37, 72),
    }[gradient]
    check(layer_of(), torch.randn(37, 40), dy)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_weight_stored_the_other_way_round(monkeypatch, variant):
    take(monkeypatch, variant)
    layer = layer_of()
    operands = arguments(layer, torch.randn(37, 40))
    operands[1] = layer.weight.detach().t().contiguous().t().requires_grad_()
    torch.testing.assert_close(schema.LINEAR(*operands), layer(operands[0]), rtol=1e-5, atol=1e-5)
    dy = torch.randn(37, 72)
    (found,) = torch.autograd.grad(schema.LINEAR(*operands), operands[1], dy)
    (wanted,) = torch.autograd.grad(layer(operands[0]), layer.weight, dy)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(0, 40), (3, 0, 40)])
def test_no_rows_no_launch_and_gradients_of_zero(monkeypatch, shape, variant, on_cpu):
    take(monkeypatch, variant)
    for layer in (layer_of(), layer_of(in_features=40, out_features=160, rank=150)):
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        assert y.shape == (*shape[:-1], layer.out_features)
        y.sum().backward()
        assert x.grad.shape == shape
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())
    assert on_cpu == []


@pytest.mark.parametrize(
    ("frozen", "absent"),
    [
        (".", {"bottleneck_backward", "reduce_partials", "linear_backward_input"}),
        ("noble.", {"bottleneck_backward", "reduce_partials"}),
        ("noble.act|noble.down_bias", {"reduce_partials"}),
    ],
)
def test_nothing_is_computed_that_nobody_needs(frozen, absent, on_cpu):
    import re

    layer = layer_of()
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not re.match(frozen, name) or name == "bias")
    layer(torch.randn(37, 40)).sum().backward()
    assert not absent & set(on_cpu)
    assert layer.bias.grad is not None


@pytest.mark.parametrize("variant", [(KERNEL, KERNEL), (VENDOR, VENDOR)])
def test_without_x_the_kernels_give_the_gradients_of_what_learns(monkeypatch, variant, on_cpu):
    take(monkeypatch, variant)
    layer, found = layer_of(), []
    layer.weight.requires_grad_(False)
    layer.noble.down.requires_grad_(False)
    x = torch.randn(3, 11, 40, requires_grad=True)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    for y in (layer(x), eagerly(layer, x)):
        found.append(torch.autograd.grad(y.square().sum(), wanted))
    assert "bottleneck_backward" in on_cpu
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "forward", "backward"), [((KERNEL, KERNEL), 2, 6), ((KERNEL, VENDOR), 2, 7), ((VENDOR, VENDOR), 3, 8)]
)
def test_launches(monkeypatch, variant, forward, backward, on_cpu):
    """Backward: the bottleneck, its sums, dx, dW, db, dU, dD. A plain linear has one launch forward, three backward."""
    take(monkeypatch, variant)
    layer, x = layer_of().bfloat16(), torch.randn(37, 40).bfloat16().requires_grad_()
    vendors = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::sum"}

    def launches(call):
        on_cpu.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            result = call()
        return len(on_cpu) + sum(event.name in vendors for event in profiler.events()), result

    count, y = launches(lambda: layer(x))
    assert count == forward
    assert launches(lambda: y.backward(torch.randn(37, 72).bfloat16()))[0] == backward


@pytest.mark.parametrize(
    "kept", ["weight", "bias", "noble.down", "noble.down_bias", "noble.up", "noble.act.mixer.weight"]
)
def test_one_gradient_alone_is_that_of_all(kept):
    layer, x = layer_of(), torch.randn(37, 40)
    dy = torch.randn(37, 72)
    parameters = dict(layer.named_parameters())
    every = torch.autograd.grad(layer(x), list(parameters.values()), dy)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name == kept)
    (alone,) = torch.autograd.grad(layer(x), parameters[kept], dy)
    torch.testing.assert_close(alone, every[list(parameters).index(kept)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_sigma_in_float32(dtype, on_cpu):
    layer, x = layer_of(), torch.randn(37, 40)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        dy = torch.randn(37, 72).to(dtype)
        y.backward(dy)
    assert "bottleneck_backward" in on_cpu
    low = layer_of().to(dtype)
    low.noble.act.load_state_dict(layer.noble.act.state_dict())
    exact = exact_of(low)
    exact.noble.act.load_state_dict(layer.noble.act.state_dict())
    truth = exact(x.to(dtype).double())
    truth.backward(dy.double())
    near("y", y, truth)
    for (name, found), wanted in zip(layer.named_parameters(), exact.parameters(), strict=True):
        assert found.grad.dtype == torch.float32
        near(name, found.grad.to(dtype), wanted.grad)


class Scaled(torch.nn.Module):
    """With a buffer and a flag that is no floating-point number."""

    def __init__(self, rank: int):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(rank))
        self.register_buffer("shift", torch.linspace(-1, 1, rank))
        self.register_buffer("on", torch.arange(rank) % 3 > 0)

    def forward(self, h: Tensor) -> Tensor:
        return torch.where(self.on, torch.tanh(h * self.scale + self.shift), h)


def test_buffers_of_an_activation_of_ones_own(on_cpu):
    check(layer_of(Scaled), torch.randn(37, 40))
    assert "reduce_partials" in on_cpu


def test_deterministic():
    layer, x = layer_of().bfloat16(), torch.randn(90, 40).bfloat16()
    runs = [torch.autograd.grad(layer(x).float().square().sum(), list(layer.parameters())) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_stay_in_their_row(bad):
    layer, x = layer_of("gelu"), torch.randn(37, 40)
    x[1, 2] = bad
    y = layer(x)
    assert torch.isfinite(y).all(dim=1).tolist() == [row != 1 for row in range(37)]


def test_double_backward_and_no_grad(on_cpu):
    layer, x = layer_of(), torch.randn(5, 40, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert all(p.grad is not None for p in layer.noble.parameters())
    on_cpu.clear()
    with torch.no_grad():
        layer(x)
    assert on_cpu == ["bottleneck_forward"]  # the vendor's GEMM is the default for the product in full float32


def test_opcheck():
    layer = layer_of(in_features=24, out_features=20, rank=4)
    operands = arguments(layer, torch.randn(2, 3, 24, requires_grad=True))
    torch.library.opcheck(schema.LINEAR, operands, test_utils=["test_schema", "test_faketensor"])


# --- several layers that read one x ----------------------------------------------------------------------------------


def group_of(*outputs: int, **settings: object) -> list[NobleLinear]:
    layers = [layer_of(out_features=columns, **settings) for columns in outputs]
    for index, layer in enumerate(layers):  # numbers of its own for each
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * index)
    return layers


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_group_is_one_launch_for_all(monkeypatch, variant, dtype, on_cpu):
    take(monkeypatch, variant)
    layers = [layer.to(dtype) for layer in group_of(72, 40, 40)]
    check_group(layers, torch.randn(2, 25, 40).to(dtype), [0, 1, 2])
    assert len(on_cpu) == len(set(on_cpu))
    assert on_cpu[0] == ("branch_first_forward" if variant[0] == FIRST else "bottleneck_forward")


@pytest.mark.parametrize(("act", "preset"), crossed(["swiglu", "identity", "gelu_net"], ["paper", "reference"]))
def test_groups_of_other_activations_without_biases(act, preset):
    check_group(group_of(48, 80, act=act, preset=preset, bias=False), torch.randn(37, 40), [0, 1])


def test_a_group_whose_second_result_is_not_used():
    check_group(group_of(48, 80, 40), torch.randn(37, 40), [0, 2])


@pytest.mark.parametrize("variant", [VARIANTS[0], *map(long, VARIANTS[1:])])
def test_a_wide_group_is_split(monkeypatch, variant):
    take(monkeypatch, variant)
    check_group(group_of(48, 72, rank=140), torch.randn(37, 40), [0, 1])


def test_a_group_without_rows():
    check_group(group_of(48, 80), torch.randn(0, 40), [0, 1])


def test_a_group_that_the_gpu_refuses_runs_layer_by_layer(monkeypatch, on_cpu):
    start = execute.start

    def narrow(plan, *args):
        if plan.layer.sites > 1:
            raise noble_fx.KernelError("out of shared memory")
        return start(plan, *args)

    monkeypatch.setattr(execute, "start", narrow)
    check_group(group_of(48, 80), torch.randn(37, 40), [0, 1])
    assert on_cpu.count("bottleneck_forward") == 2


def gradients_of(layer, x) -> dict[str, Tensor | None]:
    for parameter in layer.parameters():
        parameter.grad = None
    layer(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("rank", [12, long(140)])
def test_what_needs_no_gradient_is_not_computed(rank, on_cpu):
    layer, x = layer_of("cosnet", rank=rank), torch.randn(9, 40)
    every = gradients_of(layer, x)
    frozen = ["noble.act.first.phase", "noble.act.mixer.weight"]
    for name in frozen:
        layer.get_parameter(name).requires_grad_(False)
    some = gradients_of(layer, x)
    assert [name for name, gradient in some.items() if gradient is None] == frozen
    for name in some.keys() - set(frozen):
        torch.testing.assert_close(some[name], every[name], rtol=1e-4, atol=1e-4)
    operands = Operands.of_linear(*arguments(layer, x))
    names = [name for name, _ in layer.noble.act.named_parameters()]
    places = tuple(names.index(name.removeprefix("noble.act.")) for name in frozen)
    steps = backward_steps(available.kernels_for(operands, True, True, places).plan)
    written = {partial.name for partial in steps.partials} | {
        step.out for step in steps.steps if isinstance(step, Gemm)
    }
    assert not written & {"d_act_first_phase", "d_act_mixer_weight"}
    on_cpu.clear()
    layer.noble.act.requires_grad_(False)
    gradients_of(layer, x)
    layer.noble.down_bias.requires_grad_(False)
    assert "reduce_partials" in on_cpu  # of d alone
    on_cpu.clear()
    gradients_of(layer, x)
    assert "reduce_partials" not in on_cpu


def test_parameters_that_an_activation_does_not_use_get_none(on_cpu):
    gradients = gradients_of(layer_of(Idle), torch.randn(9, 40))
    assert [name for name, gradient in gradients.items() if gradient is None] == ["noble.act.spare", "noble.act.read"]
    assert "bottleneck_backward" in on_cpu


# --- where there is no kernel ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: layer_of().double(), "float64"),
        (lambda: layer_of(in_features=300, out_features=300, rank=257), "rank 257 is over"),
        (lambda: layer_of(Gamma), "lgamma"),
    ],
    ids=["float64", "rank", "operator"],
)
def test_what_has_no_kernel_runs_as_before_and_says_why(layer, why, on_cpu):
    layer = layer()
    noble = layer.noble
    x = torch.randn(9, layer.in_features, dtype=layer.weight.dtype)
    truth = exact_of(layer)(x.double())
    torch.testing.assert_close(layer(x).double(), truth, rtol=1e-4, atol=1e-4)
    layer(x).sum().backward()
    assert on_cpu == []
    assert why in available.why_no_kernel(noble.key, noble.rank, layer.weight.dtype).reason
    assert available.why_no_kernel(layer_of().noble.key, 12, torch.bfloat16) is None


@pytest.fixture
def refusing(monkeypatch):
    """Every launch is refused; yields the kernels that were tried."""
    tried = []

    def refuse(plan, kernel, *args):
        tried.append(kernel.name)
        raise noble_fx.KernelError("out of shared memory")

    monkeypatch.setattr(execute, "start", refuse)
    return tried


def test_a_kernel_that_the_gpu_refuses_is_tried_once(refusing, caplog):
    layer, x = layer_of(), torch.randn(9, 40)
    expected = exact_of(layer)(x.double())
    for _ in range(3):
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
        layer(x).sum().backward()
    assert refusing == ["bottleneck_forward"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"σ '{layer.noble.key}', rank 12, 40 → 72, float32, on cpu: out of shared memory" in message


def test_what_the_gpu_refused_is_explained(refusing):
    model = torch.nn.Sequential(layer_of())
    model(torch.randn(9, 40))
    assert "PyTorch operators at 1 sites: refused on cpu: out of shared memory" in str(noble_fx.explain(model))
    noble = model[0].noble
    assert available.why_no_kernel(noble.key, noble.rank, torch.float32, (24, 40)) is None  # of another shape


@pytest.mark.parametrize("fuse", [True, "require"])
def test_kernels_that_are_required_and_refused_are_an_error(refusing, fuse):
    layer = layer_of()
    layer.noble.config = replace(layer.noble.config, fuse=fuse)
    if fuse == "require":
        with pytest.raises(noble_fx.KernelError, match=r"fuse='require': σ .*out of shared memory.*fuse=True"):
            layer(torch.randn(9, 40))
    else:
        layer(torch.randn(9, 40))


def test_an_error_of_the_gpu_is_nobodys_reason_to_go_on(monkeypatch):
    def fail(*args):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(execute, "start", fail)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        layer_of()(torch.randn(9, 40))
    assert available._refused == {}


def test_a_fault_of_the_generator_is_a_reason_for_pytorchs_operators(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(available, "layer_kernels", fail)
    available._kernels.cache_clear()
    layer = layer_of()
    reason = available.why_no_kernel(layer.noble.key, 12, torch.float32)
    available._kernels.cache_clear()
    assert reason.reason == "ZeroDivisionError while its kernels were generated: a bug; please report it"

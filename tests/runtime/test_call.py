"""A call is data: what it launches and computes, in which order, with which arguments."""

import pytest
import torch

from noble_fx.branches.keys import activation_key
from noble_fx.codegen.plan import Layer
from noble_fx.errors import KernelError
from noble_fx.runtime.call import CallBuilder, ColumnSum, Launch, Product, Slot
from noble_fx.runtime.layer_kernels import KERNEL, VENDOR, LayerKernels, layer_kernels

K, N, RANK, ROWS = 40, 72, 12, 5


@pytest.fixture
def kernels() -> LayerKernels:
    key = activation_key(torch.nn.GELU(), "gelu", RANK)
    return layer_kernels(Layer(K, (N,), RANK, key, torch.float32, torch.float32), "interpreter", 1 << 16, False)


def operands() -> dict[str, torch.Tensor]:
    shapes = {"x": (ROWS, K), "weight": (N, K), "bias": (N,), "down": (RANK, K), "up": (N, RANK)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def steps(call) -> list[str]:
    return [step.kernel.name if isinstance(step, Launch) else type(step).__name__ for step in call.steps]


@pytest.mark.parametrize(
    ("product", "expected"),
    [(KERNEL, ["bottleneck_forward", "linear_up_forward"]), (VENDOR, ["bottleneck_forward", "Plain", "Product"])],
)
def test_the_steps_of_forward(kernels, product, expected):
    call = kernels.forward(operands(), (product,))
    assert steps(call) == expected
    assert list(call.results) == ["y", "h"]
    assert call.operands == ("x", "weight", "bias", "down", "up")


def test_the_steps_of_backward(kernels):
    given = {**operands(), "dy": torch.empty(ROWS, N, device="meta"), "h": torch.empty(ROWS, RANK, device="meta")}
    del given["bias"]
    needs = dict.fromkeys(("x", "weight", "bias", "down", "up"), True) | {"down_bias": False}
    call = kernels.backward(given, needs, (KERNEL, KERNEL))
    launched = ["bottleneck_backward", "linear_backward_input", "branch_weight_backward", "reduce_branch_weights"]
    assert steps(call) == [*launched, "Product"]
    assert set(call.results) == {"x", "weight", "bias", "down", "up"}
    call = kernels.backward(given, needs, (VENDOR, VENDOR))
    assert steps(call) == ["bottleneck_backward", *["Product"] * 5, "ColumnSum"]


def test_h_is_a_result_only_where_it_is_kept(kernels):
    kept, dropped = (kernels.forward(operands(), (KERNEL,), keep_h=keep) for keep in (True, False))
    assert [buffer.scratch for buffer in kept.buffers] == [False, True, False]  # h, t, y
    assert [buffer.scratch for buffer in dropped.buffers] == [True, True, False]
    assert "h" not in dropped.results


def test_arguments_are_slots_strides_and_names_of_numbers(kernels):
    given = operands() | {"x": torch.empty(ROWS, 2 * K, device="meta")[:, :K]}
    call = kernels.forward(given, (KERNEL,))
    first, second = call.launches
    names = [argument.name for argument in first.kernel.arguments]
    assert dict(zip(names, first.arguments, strict=True))["x_stride_0"] == 2 * K
    assert dict(zip(names, first.arguments, strict=True))["rows"] == "rows"
    assert Slot(call.names.index("h")) in first.arguments
    names = [argument.name for argument in second.kernel.arguments]
    assert dict(zip(names, second.arguments, strict=True))["weight_stride_0"] == K


def test_what_nothing_is_bound_to_is_named(kernels):
    call = CallBuilder(kernels.kernels, {"x": torch.empty(ROWS, K)}, 32)
    with pytest.raises(KernelError, match=r"bottleneck_forward needs 'down_ptr', .*report it"):
        call.launch("bottleneck_forward")


def test_operators_know_the_slots_that_they_touch():
    given = {"a": torch.ones(3, 2), "b": torch.ones(3, 2)}
    call = CallBuilder({}, given, 1)
    call.product("c", "a", "b", left_transposed=True)
    call.operator(ColumnSum, "d", "a")
    made = call.finish({"c": "c", "d": "d"})
    assert made.seen_by_pytorch() == {0, 1, 2, 3}
    tensors = [*given.values(), None, None]
    for step in made.steps:
        step(tensors)
    assert torch.equal(tensors[2], torch.full((2, 2), 3.0))
    assert torch.equal(tensors[3], torch.full((2,), 3.0))


def test_a_product_can_be_added_to_what_is_there_and_be_wide():
    left, right = torch.ones(2, 3).bfloat16(), torch.ones(3, 2).bfloat16()
    tensors = [left, right, torch.full((2,), 2.0).bfloat16(), None]
    Product(3, 0, 1, bias=2, wide=True)(tensors)
    assert tensors[3].dtype == torch.float32
    assert torch.equal(tensors[3], torch.full((2, 2), 5.0))
    tensors[3] = tensors[3].bfloat16()
    Product(3, 0, 1, into=True)(tensors)
    assert torch.equal(tensors[3].float(), torch.full((2, 2), 8.0))

"""The operator stands for a layer and its branch where all that it assumes holds; elsewhere they run themselves."""

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

import noble_fx
from noble_fx import CaptureError, NobleLinear
from noble_fx.layers import fused
from tests.fused_layer import small_layer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the operator was called with."""
    seen: list[Tensor] = []
    call = fused.call
    monkeypatch.setattr(fused, "call", lambda operator, x, *rest: seen.append(x) or call(operator, x, *rest))
    return seen


def truth(layer: Any, x: Tensor) -> Tensor:
    """x Wᵀ + b + σ(x Dᵀ + d) Uᵀ of the layer's tensors as they are now."""
    noble = layer.noble
    h = nn.functional.linear(x, noble.down, noble.down_bias)
    return nn.functional.linear(x, layer.weight, layer.bias) + nn.functional.linear(noble.act(h), noble.up)


def test_a_plain_layer_is_one_operator(calls):
    layer, x = small_layer(), torch.randn(3, 9)
    torch.testing.assert_close(layer(x), truth(layer, x))
    assert len(calls) == 1


@pytest.mark.parametrize("shape", [(9,), (3, 9), (2, 3, 9), (0, 9), (2, 0, 9)])
def test_any_number_of_rows(shape, calls):
    layer, x = small_layer(), torch.randn(shape)
    torch.testing.assert_close(layer(x), truth(layer, x))
    assert len(calls) == 1


def test_x_by_its_name_is_x(calls):
    layer, x = small_layer(), torch.randn(3, 9)
    torch.testing.assert_close(layer(input=x), truth(layer, x))
    assert len(calls) == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'inputs'"):
        layer(inputs=x)


# --- the branch is not what it was -----------------------------------------------------------------------------------


def _hook(register: str) -> Callable[[Any], Any]:
    return lambda layer: getattr(layer.noble, register)(lambda *args: None)


def _scaled(layer: Any) -> None:
    own = layer.noble.forward
    layer.noble.forward = lambda x, rows=None: own(x, rows)


def _replaced(layer: Any) -> None:
    layer.noble.__class__ = type("Mine", (type(layer.noble),), {})


DISTURBED = {
    "forward hook": _hook("register_forward_hook"),
    "forward pre-hook": _hook("register_forward_pre_hook"),
    "backward hook": _hook("register_full_backward_hook"),
    "backward pre-hook": _hook("register_full_backward_pre_hook"),
    "a forward of its own": _scaled,
    "another class": _replaced,
    "pruned": lambda layer: prune.l1_unstructured(layer.noble, "up", 0.5),
    "weight norm": lambda layer: parametrizations.weight_norm(layer.noble, "up"),
    "spectral norm": lambda layer: parametrizations.spectral_norm(layer.noble, "down"),
    "weight norm of W": lambda layer: parametrizations.weight_norm(layer),
}


@pytest.mark.parametrize("how", DISTURBED)
def test_a_branch_that_was_changed_runs_itself(how, calls):
    layer, x = small_layer().eval(), torch.randn(3, 9)
    DISTURBED[how](layer)
    torch.testing.assert_close(layer(x), truth(layer, x))
    assert not calls


def test_a_hook_of_all_modules_sees_the_branch(calls):
    layer, seen = small_layer(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *rest: seen.append(module))
    try:
        layer(torch.randn(3, 9))
    finally:
        handle.remove()
    assert layer.noble in seen
    assert layer.noble.act in seen
    assert not calls
    layer(torch.randn(3, 9))
    assert len(calls) == 1


def test_a_pruned_branch_trains_as_it_does_in_modules():
    layer, x = small_layer(), torch.randn(5, 9)
    prune.l1_unstructured(layer.noble, "up", 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(3):
        layer(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    layer(x)
    assert torch.equal(layer.noble.up, layer.noble.up_orig * layer.noble.up_mask)


def test_a_pruned_layer_keeps_the_operator_and_its_mask(calls):
    layer, x = small_layer(), torch.randn(3, 9)
    prune.l1_unstructured(layer, "weight", 0.5)
    torch.testing.assert_close(layer(x), truth(layer, x))
    assert (layer.weight == 0).any()
    assert len(calls) == 1


def test_parameters_put_in_place_of_others_are_read(calls):
    layer, x = small_layer(), torch.randn(3, 9)
    with torch.no_grad():
        layer.noble.up = nn.Parameter(layer.noble.up * 2)
        other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
        torch.testing.assert_close(layer(x), truth(layer, x))
        found = torch.func.functional_call(layer, other, (x,))
        layer.load_state_dict(other)
        torch.testing.assert_close(found, truth(layer, x))
    assert len(calls) == 2


def test_views_in_the_place_of_parameters_are_read(calls):
    layer, x = small_layer(), torch.randn(3, 9)
    expected = layer(x)
    for module in (layer, layer.noble):  # as FSDP1 does while it runs
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                object.__setattr__(module, name, parameter.view_as(parameter))
    assert torch.equal(layer(x), expected)
    assert len(calls) == 2


def test_a_copy_is_bound_to_its_own_tensors(calls):
    layer, x = small_layer(), torch.randn(3, 9)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            again.noble.up.zero_()
        assert torch.equal(again(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert len(calls) == 2
    assert not torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_a_layer_that_was_resized_says_so():
    layer = small_layer()
    layer.weight = nn.Parameter(torch.randn(11, 9))
    layer.bias = nn.Parameter(torch.randn(11))
    with pytest.raises(CaptureError, match=r"Linear.forward gives \[3, 11\] where its linear map gives \[3, 7\]"):
        layer(torch.randn(3, 9))


@pytest.mark.parametrize("x", [torch.randn(3, 8), torch.randn(()), torch.randn(3, 9).double(), torch.ones(3, 9).int()])
def test_a_wrong_input_has_the_error_of_the_plain_layer(x):
    with pytest.raises((RuntimeError, IndexError)) as plain:
        nn.Linear(9, 7)(x)
    with pytest.raises(type(plain.value)) as fused_error:
        small_layer()(x)
    assert str(fused_error.value) == str(plain.value)


# --- tensors that are no plain ones ----------------------------------------------------------------------------------


class Tagged(Tensor):
    """A subclass that sees every function which is called with it, as quantized and distributed tensors do."""

    seen: list[str] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("place", ["x", "weight", "down"])
def test_a_subclass_of_tensor_decides_for_itself(place, calls):
    layer, x = small_layer(), torch.randn(3, 9)
    expected = layer(x)
    if place == "x":
        x = x.as_subclass(Tagged)
    else:
        owner = layer if place == "weight" else layer.noble
        owner._parameters[place] = nn.Parameter(owner._parameters[place].detach().as_subclass(Tagged))
    Tagged.seen.clear()
    torch.testing.assert_close(layer(x).as_subclass(Tensor), expected)
    assert "linear" in Tagged.seen
    assert len(calls) == 1  # the plain one


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize("fuse", [True, False])
def test_nested_tensors(layout, fuse, calls):
    layer, parts = small_layer(fuse=fuse), [torch.randn(3, 9), torch.randn(5, 9)]
    y = layer(torch.nested.nested_tensor(parts, layout=layout))
    for found, part in zip(y.unbind(), parts, strict=True):
        torch.testing.assert_close(found, truth(layer, part))
    assert not calls
    y.values().sum().backward() if layout is torch.jagged else sum(part.sum() for part in y.unbind()).backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_distributed_tensors_are_multiplied_by_their_own_rules(calls):
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    layer, x = small_layer(), torch.randn(3, 9)
    expected = truth(layer, x)
    init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for module in layer.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    placed = distribute_tensor(parameter.detach(), mesh, [Replicate()])
                    module._parameters[name] = nn.Parameter(placed)
        y = layer(distribute_tensor(x, mesh, [Replicate()]))
        assert isinstance(y, DTensor)
        torch.testing.assert_close(y.to_local(), expected)
    finally:
        destroy_process_group()
    assert not calls


# --- functions of functions ------------------------------------------------------------------------------------------


def test_vmap_over_x_and_over_parameters(calls):
    layers, x = [small_layer(), small_layer()], torch.randn(4, 9)
    layers[1].load_state_dict({name: value + 0.1 for name, value in layers[1].state_dict().items()})
    torch.testing.assert_close(torch.vmap(lambda row: layers[0](row[None])[0])(x), truth(layers[0], x))
    parameters, buffers = torch.func.stack_module_state(layers)
    found = torch.vmap(lambda p, b: torch.func.functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([truth(layer, x) for layer in layers]))
    assert not calls


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_tangents(frozen, grad, calls):
    layer, x, v = small_layer().requires_grad_(not frozen), torch.randn(3, 9), torch.randn(3, 9)
    _, expected = torch.func.jvp(lambda x: truth(layer, x), (x,), (v,))
    with contextlib.nullcontext() if grad else torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v))).tangent
    torch.testing.assert_close(tangent, expected)
    assert not calls


def test_a_torchscript_trace_holds_no_operator_of_ours(calls):
    layer, x = small_layer(), torch.randn(3, 9)
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert "noble_fx::" not in str(traced.inlined_graph)
    y = torch.randn(5, 9)
    torch.testing.assert_close(traced(y), truth(layer, y))
    assert not calls


def test_a_fake_tensor_is_a_plain_one(calls):
    from torch._subclasses import FakeTensorMode

    layer = small_layer()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(3, 9)).shape == (3, 7)
    assert len(calls) == 1


# --- what comes after ------------------------------------------------------------------------------------------------


def _view(y: Tensor) -> Tensor:
    y.view(-1).mul_(2)
    return y


def _slice(y: Tensor) -> Tensor:
    y[..., 0] = 0
    return y


def _transposed(y: Tensor) -> Tensor:
    y.transpose(0, -1).mul_(3)
    return y


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "add_": lambda y: y.add_(1),
    "relu": nn.ReLU(inplace=True),
    "masked_fill_": lambda y: y.masked_fill_(y > 0, 0.5),
    "copy_": lambda y: y.copy_(torch.ones_like(y)),
    "a view": _view,
    "a slice": _slice,
    "transposed": _transposed,
}


@pytest.mark.parametrize("how", IN_PLACE)
@pytest.mark.parametrize("shape", [(9,), (4, 9), (2, 3, 9)])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_result_may_be_changed_in_place(how, shape, frozen):
    layer, gradients = small_layer().double().requires_grad_(not frozen), []
    bias = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for function in (layer, lambda x: truth(layer, x)):
        y = function(x)
        y += bias
        y = IN_PLACE[how](y)
        wanted = [t for t in (x, bias, *layer.parameters()) if t.requires_grad]
        gradients.append((y, *torch.autograd.grad(y.square().sum(), wanted, allow_unused=True, materialize_grads=True)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "noble_fx"])
def test_a_result_may_be_changed_in_place_in_a_compiled_model(backend):
    torch.manual_seed(0)
    model = noble_fx.transform(nn.Sequential(nn.Linear(8, 12), nn.ReLU(inplace=True), nn.Linear(12, 8)), rank=2)
    x, gradients = torch.randn(2, 3, 8), []
    options = {"then": "aot_eager"} if backend == "noble_fx" else None
    for run in (model, torch.compile(model, backend=backend, options=options)):
        y = run(x)
        y.view(6, 8).mul_(2)
        gradients.append(torch.autograd.grad(y.square().sum(), list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


class Dispatched(TorchDispatchMode):
    """The operators that PyTorch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def test_what_looks_at_operators_sees_the_one_of_the_layer():
    layer, x = small_layer(), torch.randn(3, 9)
    with Dispatched() as seen:
        layer(x)
    assert seen.names == ["noble_fx.linear_forward.default"]


def test_layers_of_a_users_own_class_are_guarded_too(calls):
    class Mine(NobleLinear):
        pass

    layer, x = Mine.build(9, 7, 3), torch.randn(3, 9)
    layer(x)
    layer.noble.register_forward_hook(lambda module, args, y: y * 0)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert len(calls) == 1

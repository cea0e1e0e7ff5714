"""A call on tensors: by Triton's launcher first, by what it compiled from then on, with the same arguments."""

import os
from types import SimpleNamespace

import pytest
import torch

from noble_fx.branches.keys import activation_key
from noble_fx.codegen.plan import Layer
from noble_fx.runtime import compiled, execute
from noble_fx.runtime.call import Launch
from noble_fx.runtime.execute import Executor
from noble_fx.runtime.layer_kernels import KERNEL, LayerKernels, layer_kernels

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as conftest.py sets it where there is no GPU

K, N, RANK, ROWS = 40, 72, 12, 5
CPU = torch.device("cpu")


@pytest.fixture
def kernels() -> LayerKernels:
    key = activation_key(torch.nn.GELU(), "gelu", RANK)
    return layer_kernels(Layer(K, (N,), RANK, key, torch.float32, torch.float32), "interpreter", 1 << 16, False)


def operands() -> dict[str, torch.Tensor]:
    shapes = {"x": (ROWS, K), "weight": (N, K), "bias": (N,), "down": (RANK, K), "up": (N, RANK)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


class Launches:
    """What was started, by which way, with which arguments; kernels are compiled by their first start."""

    def __init__(self) -> None:
        self.by_triton: list[tuple[str, list]] = []
        self.bound: list[tuple[str, tuple]] = []

    def start(self, plan, kernel, rows, arguments):
        self.by_triton.append((kernel.name, list(arguments)))

        def run(programs, y, z, stream, function, metadata, launch, enter, leave, *arguments):
            assert (programs, y, z, stream, launch, enter, leave) == (kernel.programs(rows), 1, 1, 7, None, None, None)
            self.bound.append((kernel.name, arguments))

        return SimpleNamespace(run=run, function=1, packed_metadata=())


@pytest.fixture
def launches(monkeypatch) -> Launches:
    found = Launches()
    monkeypatch.setattr(execute, "start", found.start)
    driver = SimpleNamespace(get_current_device=lambda: None, get_current_stream=lambda index: 7)
    monkeypatch.setattr(compiled, "_driver", lambda: driver)
    monkeypatch.setattr(compiled, "_runtime", lambda: SimpleNamespace(launch_enter_hook=None, launch_exit_hook=None))
    return found


def executor(kernels: LayerKernels, given: dict[str, torch.Tensor], **settings) -> Executor:
    return Executor(kernels.plan, kernels.forward(given, (KERNEL,), **settings), ROWS, CPU)


def plain(arguments) -> list:
    return [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]


def test_the_compiled_kernels_get_what_triton_got(kernels, launches):
    given = operands()
    run = executor(kernels, given)
    kept = []  # so that no address is used twice
    for _ in range(3):
        kept.append(run(list(given.values())))
    assert [name for name, _ in launches.by_triton] == ["bottleneck_forward", "linear_up_forward"]
    assert [name for name, _ in launches.bound] == ["bottleneck_forward", "linear_up_forward"] * 2
    call = kernels.forward(given, (KERNEL,))
    for (_, first), (_, second), launch in zip(launches.by_triton, launches.bound[:2], call.launches, strict=True):
        addresses = {given[name].data_ptr() for name in call.operands}
        for one, other, argument in zip(plain(first), second, launch.arguments, strict=True):
            if isinstance(argument, int | str) or one in addresses:
                assert one == other
    (y, h), (_, arguments) = kept[1], launches.bound[0]
    assert h.data_ptr() in arguments
    assert y.shape == (ROWS, N)


def test_pieces_of_the_workspace_do_not_overlap(kernels, launches):
    given = operands()
    run = executor(kernels, given, keep_h=False)
    run(list(given.values()))
    run(list(given.values()))
    call = kernels.forward(given, (KERNEL,), keep_h=False)
    slots = {call.names[a.index]: at for at, a in enumerate(call.launches[0].arguments) if not isinstance(a, int | str)}
    _, arguments = launches.bound[0]
    h, t = arguments[slots["h"]], arguments[slots["t"]]
    assert abs(h - t) >= ROWS * RANK * 4
    assert h % 16 == t % 16 == 0


def test_an_address_that_is_not_aligned_goes_by_triton(kernels, launches):
    given = operands()
    run = executor(kernels, given)
    run(list(given.values()))
    odd = torch.zeros(ROWS * K + 1)[1:].view(ROWS, K)
    run([odd, *list(given.values())[1:]])
    assert len(launches.by_triton) == 4
    assert launches.bound == []
    run(list(given.values()))
    assert len(launches.bound) == 2


def test_the_first_call_at_an_odd_address_binds_nothing(kernels, launches):
    given = operands() | {"x": torch.zeros(ROWS * K + 1)[1:].view(ROWS, K)}
    run = executor(kernels, given)
    run(list(given.values()))
    run(list((given | {"x": torch.zeros(ROWS, K)}).values()))
    assert len(launches.by_triton) == 4
    run(list((given | {"x": torch.zeros(ROWS, K)}).values()))
    assert len(launches.bound) == 2


@pytest.mark.parametrize("hook", [[len], SimpleNamespace(calls=[len])])
def test_hooks_of_a_profiler_see_every_launch(kernels, launches, monkeypatch, hook):
    given = operands()
    run = executor(kernels, given)
    monkeypatch.setattr(compiled, "_runtime", lambda: SimpleNamespace(launch_enter_hook=hook, launch_exit_hook=None))
    run(list(given.values()))
    run(list(given.values()))
    assert len(launches.by_triton) == 4


def test_another_current_device_goes_by_triton(kernels, launches, monkeypatch):
    given = operands()
    run = executor(kernels, given)
    run(list(given.values()))
    driver = SimpleNamespace(get_current_device=lambda: 3, get_current_stream=lambda index: 7)
    monkeypatch.setattr(compiled, "_driver", lambda: driver)
    run(list(given.values()))
    assert len(launches.by_triton) == 4


def test_results_have_the_shapes_that_are_asked_for(kernels, launches):
    given = operands()
    call = kernels.forward(given, (KERNEL,))
    run = Executor(kernels.plan, call, ROWS, CPU, (), {"y": (1, ROWS, N), "h": (1, ROWS, RANK)})
    for _ in range(2):
        y, h = run(list(given.values()))
        assert (y.shape, h.shape) == ((1, ROWS, N), (1, ROWS, RANK))
        assert not y._is_view()


@pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted here: tests/gpu compiles them")
def test_interpreted_kernels_are_never_bound(kernels, monkeypatch, tmp_path):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))
    given = {name: torch.randn_like(tensor) for name, tensor in operands().items()}
    run = executor(kernels, given)
    results = [run(list(given.values()))[0] for _ in range(2)]
    assert torch.equal(*results)
    assert any(isinstance(step, Launch) for step in kernels.forward(given, (KERNEL,)).steps)
    assert run._bound is None
